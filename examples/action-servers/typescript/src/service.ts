import { type sendUnaryData, status, type ServerUnaryCall } from "@grpc/grpc-js";
import {
  type ActionServerServer,
  type Call,
  DoResponse,
  type DoRequest,
  type UndoRequest,
  type UndoResponse,
} from "../gen/sec/v1/action_server.js";
import { type Action, Failed } from "./action.js";
import { Refused, type Store } from "./store.js";

const NO_ANSWER = new Uint8Array();

/** Keeps the obligations of the contract. Each call is one transaction: it remembers the epoch, has the effect, and marks the key with what it answers. */
export function actionService(name: string, actions: Action[], store: Store): ActionServerServer {
  const byName = new Map(actions.map((action) => [action.name, action]));

  function offered(call: Call | undefined): [Action, Call] {
    const action = byName.get(call?.action ?? "");
    if (call === undefined || action === undefined) {
      throw new Refused(status.UNIMPLEMENTED, `The action "${call?.action}" is not offered here.`);
    }
    return [action, call];
  }

  return {
    describe: (_, callback) => {
      callback(null, {
        serverName: name,
        actions: actions.map(({ name, summary }) => ({ name, summary, schemas: undefined })),
        batches: false,
      });
    },
    // Optional. `describe` does not say that it is there.
    batch: (call) => {
      call.emit("error", { code: status.UNIMPLEMENTED, details: "Calls come one by one here." });
    },
    do: answered(async (message: DoRequest) => {
      const [action, call] = offered(message.call);
      await action.prepare?.(message);
      return store.inTransaction(() => doOnce(store, action, call, message));
    }),
    undo: answered(async (message: UndoRequest) => {
      const [action, call] = offered(message.call);
      return store.inTransaction(() => undoOnce(store, action, call, message));
    }),
  };
}

function doOnce(store: Store, action: Action, call: Call, message: DoRequest): DoResponse {
  store.rememberEpoch(call);
  const known = store.known(call.idempotencyKey);
  switch (known?.mark) {
    case "done":
    case "failed":
      return DoResponse.decode(known.answer);
    case "undone":
      return failure(new Failed("It was undone before.", "undone"));
    case "undo failed":
      throw new Refused(status.UNAVAILABLE, "Its undo has failed.");
  }
  let answer: DoResponse;
  try {
    const output = store.effect(() => action.do(store.db, message));
    answer = { result: { $case: "output", output } };
  } catch (error) {
    answer = failure(failedOrUnknown(error));
  }
  const mark = answer.result?.$case === "output" ? "done" : "failed";
  store.remember(call.idempotencyKey, mark, DoResponse.encode(answer).finish());
  return answer;
}

function undoOnce(store: Store, action: Action, call: Call, message: UndoRequest): UndoResponse {
  store.rememberEpoch(call);
  const known = store.known(call.idempotencyKey);
  const tookEffect = known === undefined ? message.output !== undefined : ["done", "undo failed"].includes(known.mark);
  if (tookEffect) {
    try {
      store.effect(() => action.undo?.(store.db, message));
    } catch (error) {
      const failed = failedOrUnknown(error);
      store.remember(call.idempotencyKey, "undo failed", known?.answer ?? NO_ANSWER);
      return { failure: failed.toProto() };
    }
  }
  store.remember(call.idempotencyKey, "undone", NO_ANSWER);
  return { failure: undefined };
}

function failedOrUnknown(error: unknown): Failed {
  if (error instanceof Failed) return error;
  throw new Refused(status.UNAVAILABLE, String(error));
}

function failure(failed: Failed): DoResponse {
  return { result: { $case: "failure", failure: failed.toProto() } };
}

function answered<Q, A>(handler: (message: Q) => Promise<A>) {
  return (call: ServerUnaryCall<Q, A>, callback: sendUnaryData<A>): void => {
    handler(call.request).then(
      (answer) => callback(null, answer),
      (error: unknown) => callback({ code: error instanceof Refused ? error.code : status.UNAVAILABLE, details: String(error) }),
    );
  };
}
