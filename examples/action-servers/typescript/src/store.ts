import Database from "libsql";
import { status } from "@grpc/grpc-js";
import type { Call } from "../gen/sec/v1/action_server.js";

const TABLES = `
  CREATE TABLE IF NOT EXISTS epochs (saga_uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
  CREATE TABLE IF NOT EXISTS marks (key TEXT PRIMARY KEY, mark TEXT NOT NULL, answer BLOB NOT NULL);`;

export type Mark = "done" | "failed" | "undo failed" | "undone";

/** A mark, and what the do answered. */
export interface Known {
  mark: Mark;
  answer: Buffer;
}

/** The call ends with this status. */
export class Refused extends Error {
  constructor(readonly code: status, message: string) {
    super(message);
  }
}

/**
 * A SQLite file with the effects and what is known of the calls. Its calls block, and so nothing comes between two of them: a function without
 * promises has the database for itself.
 */
export class Store {
  readonly db: Database.Database;

  constructor(file: string, tables: string) {
    this.db = new Database(file);
    this.db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;");
    this.db.exec(TABLES + tables);
  }

  /** What refuses a call is an answer like any other, and commits: the epoch must stay. Anything else is rolled back. */
  inTransaction<T>(work: () => T): T {
    this.db.exec("BEGIN IMMEDIATE");
    try {
      const answer = work();
      this.db.exec("COMMIT");
      return answer;
    } catch (error) {
      this.db.exec(error instanceof Refused ? "COMMIT" : "ROLLBACK");
      throw error;
    }
  }

  /** Takes back what the work has changed when it throws. */
  effect<T>(work: () => T): T {
    this.db.exec("SAVEPOINT effect");
    try {
      return work();
    } catch (error) {
      this.db.exec("ROLLBACK TO effect");
      throw error;
    } finally {
      this.db.exec("RELEASE effect");
    }
  }

  /** Refuses a call whose epoch is below the highest seen for its saga. */
  rememberEpoch(call: Call): void {
    const query = this.db.prepare("SELECT epoch FROM epochs WHERE saga_uid = ?").safeIntegers(true);
    const row = query.get(call.sagaUid) as { epoch: bigint } | undefined;
    if (row !== undefined && row.epoch > call.epoch) {
      throw new Refused(status.FAILED_PRECONDITION, `Epoch ${call.epoch} is stale: ${row.epoch} has been seen.`);
    }
    this.db.prepare("INSERT OR REPLACE INTO epochs VALUES (?, ?)").run(call.sagaUid, call.epoch);
  }

  /** Undefined for a key that was never seen, or had no effect so far. */
  known(key: string): Known | undefined {
    return this.db.prepare("SELECT mark, answer FROM marks WHERE key = ?").get(key) as Known | undefined;
  }

  remember(key: string, mark: Mark, answer: Uint8Array): void {
    this.db.prepare("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)").run(key, mark, Buffer.from(answer));
  }
}
