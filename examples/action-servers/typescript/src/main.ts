// Serves the actions until SIGTERM: node dist/src/main.js HOST:PORT FILE [ACTION…]
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import { ActionServerService } from "../gen/sec/v1/action_server.js";
import { CONFORMANCE, CONFORMANCE_TABLES } from "./conformance.js";
import { actionService } from "./service.js";
import { Store } from "./store.js";
import { TRIP, TRIP_TABLES } from "./trip.js";

const SERVICE = "sec.v1.ActionServer";
const LARGEST_CALL = 64 * 1024 * 1024; // the most that an SEC node sends
const GRACE_MS = 10_000;

const [address, file, ...names] = process.argv.slice(2);
if (address === undefined || file === undefined) throw new Error("usage: main.js HOST:PORT FILE [ACTION…]");
const actions = [...TRIP, ...CONFORMANCE].filter(({ name }) => names.length === 0 || names.includes(name));
const store = new Store(file, TRIP_TABLES + CONFORMANCE_TABLES);
const server = new Server({ "grpc.max_receive_message_length": LARGEST_CALL, "grpc.so_reuseport": 0 });
server.addService(ActionServerService, actionService("typescript", actions, store));
const health = new HealthImplementation({ [SERVICE]: "SERVING" });
health.addToServer(server);

function stop(): void {
  health.setStatus(SERVICE, "NOT_SERVING");
  const late = setTimeout(() => server.forceShutdown(), GRACE_MS);
  server.tryShutdown(() => clearTimeout(late));
}

for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, stop);
server.bindAsync(address, ServerCredentials.createInsecure(), (error) => {
  if (error !== null) throw error;
  console.log(`The action server listens at ${address}.`);
});
