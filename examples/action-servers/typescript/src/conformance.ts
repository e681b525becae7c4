import { setTimeout } from "node:timers/promises";
import type Database from "libsql";
import type { Call } from "../gen/sec/v1/action_server.js";
import { type Action, Failed } from "./action.js";
import { decoded, jsonPayload } from "./json.js";

export const CONFORMANCE_TABLES =
  "CREATE TABLE IF NOT EXISTS balances (saga_uid TEXT PRIMARY KEY, balance INTEGER NOT NULL);";

interface Params {
  amount: number;
  sleep_ms?: number;
  unavailable?: number;
  fail?: number;
  message?: string;
  undo_unavailable?: number;
  undo_fail?: number;
}

function behave(call: Call | undefined, unavailable = 0, fail = 0, message = "It failed, as it was told."): void {
  const attempt = call?.attempt ?? 0;
  if (attempt <= unavailable) throw new Error("Not available, as it was told.");
  if (attempt <= fail) throw new Failed(message, "refused");
}

function change(db: Database.Database, call: Call | undefined, amount: number): void {
  db.prepare(
    "INSERT INTO balances VALUES (?1, ?2) ON CONFLICT (saga_uid) DO UPDATE SET balance = balance + ?2",
  ).run(call?.sagaUid, amount);
}

function balance(db: Database.Database, call: Call | undefined): number {
  const row = db.prepare("SELECT balance FROM balances WHERE saga_uid = ?").get(call?.sagaUid);
  return (row as { balance: number } | undefined)?.balance ?? 0;
}

/** Called by `secctl conformance`; docs/action-servers.md specifies them. */
export const CONFORMANCE: Action[] = [
  {
    name: "conformance.add",
    summary: "Adds to the balance of a saga.",
    async prepare(message) {
      await setTimeout(decoded<Params>(message.params).sleep_ms ?? 0);
    },
    do(db, message) {
      const { amount, unavailable, fail, message: why } = decoded<Params>(message.params);
      behave(message.call, unavailable, fail, why);
      change(db, message.call, amount);
      return jsonPayload(balance(db, message.call));
    },
    undo(db, message) {
      const { amount, undo_unavailable, undo_fail } = decoded<Params>(message.params);
      behave(message.call, undo_unavailable, undo_fail);
      change(db, message.call, -amount);
    },
  },
  {
    name: "conformance.balance",
    summary: "Reads the balance of a saga.",
    do: (db, message) => jsonPayload(balance(db, message.call)),
  },
  {
    name: "conformance.echo",
    summary: "Answers what it gets.",
    do(_, message) {
      const payload = message.inputs.get("payload");
      if (payload === undefined) throw new Failed("There is no payload.", "refused");
      return payload;
    },
  },
];
