import type { Payload } from "../gen/sec/v1/common.js";

export function decoded<T>(payload: Payload | undefined): T {
  return JSON.parse(payload?.data.toString() ?? "null") as T;
}

export function jsonPayload(value: unknown): Payload {
  return { contentType: "application/json", data: Buffer.from(JSON.stringify(value)) };
}
