"""Serves the actions until SIGTERM: python server.py HOST:PORT FILE [ACTION…]"""

import signal
import sys
import threading
from concurrent import futures

import grpc
from actions import CONFORMANCE, TABLES, TRIP
from contract import ActionServer
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sec_protos.v1 import action_server_pb2_grpc

SERVICE = "sec.v1.ActionServer"
LARGEST_CALL = 64 * 1024 * 1024  # the most that an SEC node sends
GRACE_S = 10


def main(address: str, file: str, *names: str) -> None:
    actions = [action for action in TRIP + CONFORMANCE if not names or action.name in names]
    server = grpc.server(
        futures.ThreadPoolExecutor(64), options=[("grpc.max_receive_message_length", LARGEST_CALL), ("grpc.so_reuseport", 0)]
    )
    action_server_pb2_grpc.add_ActionServerServicer_to_server(ActionServer("python", actions, file, TABLES), server)
    healthy = health.HealthServicer()
    healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    server.add_insecure_port(address)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    print(f"The action server listens at {address}.", flush=True)
    stop.wait()
    healthy.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
    server.stop(GRACE_S).wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
