package com.example.actionserver;

import dev.sec.v1.ActionServerGrpc;
import io.grpc.Server;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.services.HealthStatusManager;
import java.net.InetSocketAddress;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;

/** Serves the actions until SIGTERM: action-server.jar HOST:PORT FILE [ACTION…] */
public final class Main {
  private static final int LARGEST_CALL = 64 * 1024 * 1024; // the most that an SEC node sends
  private static final int GRACE_S = 10;

  public static void main(String[] arguments) throws Exception {
    String[] address = arguments[0].split(":");
    List<String> names = List.of(arguments).subList(2, arguments.length);
    List<Action> actions =
        Stream.concat(Trip.ACTIONS.stream(), Conformance.ACTIONS.stream())
            .filter(action -> names.isEmpty() || names.contains(action.name()))
            .toList();
    Store store = new Store(arguments[1], Trip.TABLE, Conformance.TABLE);
    HealthStatusManager health = new HealthStatusManager();
    health.setStatus(ActionServerGrpc.SERVICE_NAME, ServingStatus.SERVING);
    Server server =
        NettyServerBuilder.forAddress(new InetSocketAddress(address[0], Integer.parseInt(address[1])))
            .executor(Executors.newCachedThreadPool())
            .maxInboundMessageSize(LARGEST_CALL)
            .addService(new ActionService("java", actions, store))
            .addService(health.getHealthService())
            .build()
            .start();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(server, health, store)));
    System.out.println("The action server listens at " + arguments[0] + ".");
    server.awaitTermination();
  }

  private static void stop(Server server, HealthStatusManager health, Store store) {
    try {
      health.enterTerminalState(); // no new calls
      if (!server.shutdown().awaitTermination(GRACE_S, TimeUnit.SECONDS)) {
        server.shutdownNow();
      }
      store.close();
    } catch (Exception fault) {
      fault.printStackTrace();
    }
  }
}
