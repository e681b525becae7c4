package com.example.actionserver;

import dev.sec.v1.DoRequest;
import dev.sec.v1.Payload;
import dev.sec.v1.UndoRequest;
import java.sql.Connection;

/** Has its effect in the transaction that it gets, and nowhere else. */
record Action(String name, String summary, Do action, Undo undo, Preparation preparation) {
  static final Undo NOTHING_TO_UNDO = (db, message) -> {};

  Action(String name, String summary, Do action, Undo undo) {
    this(name, summary, action, undo, message -> {});
  }

  interface Do {
    Payload apply(Connection db, DoRequest message) throws Exception;
  }

  interface Undo {
    void apply(Connection db, UndoRequest message) throws Exception;
  }

  /** Comes before a do, outside of its transaction: what is slow goes there. */
  interface Preparation {
    void apply(DoRequest message) throws Exception;
  }

  /**
   * Thrown by an action: it has no effect, and never will. Thrown by an undo: it cannot be done. Any other exception leaves the outcome unknown, and the
   * call comes again.
   */
  static final class Failed extends Exception {
    final String code;

    Failed(String message, String code) {
      super(message);
      this.code = code;
    }

    dev.sec.v1.Error toProto() {
      return dev.sec.v1.Error.newBuilder().setMessage(getMessage()).setCode(code).build();
    }
  }
}
