import type Database from "libsql";
import type { DoRequest, UndoRequest } from "../gen/sec/v1/action_server.js";
import type { Payload, Error as Reason } from "../gen/sec/v1/common.js";

/** Has its effect in the database that it gets, at once (no promises), and nowhere else. */
export interface Action {
  name: string;
  summary: string;
  do(db: Database.Database, message: DoRequest): Payload;
  /** Missing where nothing has to be undone. */
  undo?(db: Database.Database, message: UndoRequest): void;
  /** Comes before a do, outside of its transaction: what is slow goes there. */
  prepare?(message: DoRequest): Promise<void>;
}

/** Thrown by an action: it has no effect, and never will. Thrown by an undo: it cannot be done. Anything else leaves the outcome unknown. */
export class Failed extends Error {
  constructor(message: string, readonly code: string) {
    super(message);
  }

  toProto(): Reason {
    return { message: this.message, code: this.code, data: undefined };
  }
}
