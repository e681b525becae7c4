package com.example.actionserver;

import com.google.gson.annotations.SerializedName;
import dev.sec.v1.Call;
import dev.sec.v1.DoRequest;
import dev.sec.v1.Payload;
import dev.sec.v1.UndoRequest;
import java.sql.Connection;
import java.sql.SQLException;
import java.util.List;

/** Called by `secctl conformance`; docs/action-servers.md specifies them. */
final class Conformance {
  static final String TABLE = "CREATE TABLE IF NOT EXISTS balances (saga_uid TEXT PRIMARY KEY, balance INTEGER NOT NULL)";

  static final List<Action> ACTIONS =
      List.of(
          new Action(
              "conformance.add",
              "Adds to the balance of a saga.",
              Conformance::add,
              Conformance::takeOff,
              message -> Thread.sleep(params(message.getParams()).sleepMs())),
          new Action(
              "conformance.balance",
              "Reads the balance of a saga.",
              (db, message) -> balance(db, message.getCall()),
              Action.NOTHING_TO_UNDO),
          new Action(
              "conformance.echo",
              "Answers what it gets.",
              (db, message) -> message.getInputsOrThrow("payload"),
              Action.NOTHING_TO_UNDO));

  private record Params(
      long amount,
      @SerializedName("sleep_ms") long sleepMs,
      int unavailable,
      int fail,
      String message,
      @SerializedName("undo_unavailable") int undoUnavailable,
      @SerializedName("undo_fail") int undoFail) {}

  private static Params params(Payload payload) {
    return Json.decoded(payload, Params.class);
  }

  private static Payload add(Connection db, DoRequest message) throws Exception {
    Params params = params(message.getParams());
    behave(message.getCall(), params.unavailable(), params.fail(), params.message());
    change(db, message.getCall(), params.amount());
    return balance(db, message.getCall());
  }

  private static void takeOff(Connection db, UndoRequest message) throws Exception {
    Params params = params(message.getParams());
    behave(message.getCall(), params.undoUnavailable(), params.undoFail(), null);
    change(db, message.getCall(), -params.amount());
  }

  private static void behave(Call call, int unavailable, int fail, String message) throws Exception {
    if (call.getAttempt() <= unavailable) {
      throw new IllegalStateException("Not available, as it was told.");
    }
    if (call.getAttempt() <= fail) {
      throw new Action.Failed(message == null ? "It failed, as it was told." : message, "refused");
    }
  }

  private static void change(Connection db, Call call, long amount) throws SQLException {
    String sql = "INSERT INTO balances VALUES (?1, ?2) ON CONFLICT (saga_uid) DO UPDATE SET balance = balance + ?2";
    try (var insert = db.prepareStatement(sql)) {
      insert.setString(1, call.getSagaUid());
      insert.setLong(2, amount);
      insert.executeUpdate();
    }
  }

  private static Payload balance(Connection db, Call call) throws SQLException {
    try (var query = db.prepareStatement("SELECT balance FROM balances WHERE saga_uid = ?")) {
      query.setString(1, call.getSagaUid());
      var row = query.executeQuery();
      return Json.payload(row.next() ? row.getLong(1) : 0L);
    }
  }

  private Conformance() {}
}
