package com.example.actionserver;

import dev.sec.v1.DoRequest;
import dev.sec.v1.Payload;
import dev.sec.v1.UndoRequest;
import java.sql.Connection;
import java.sql.SQLException;
import java.util.List;
import java.util.stream.Collectors;

/** Books a trip. */
final class Trip {
  static final String TABLE =
      "CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, what TEXT NOT NULL, guest TEXT NOT NULL)";

  static final List<Action> ACTIONS =
      List.of(
          booking("book_hotel", "Books a room.", "hotel"),
          booking("rent_car", "Rents a car.", "car"),
          booking("book_flight", "Books a seat.", "flight"),
          booking("insure_trip", "Insures the guest.", "insurance"),
          new Action("take_payment", "Charges the guest for the trip.", Trip::takePayment, Trip::giveBack));

  private record Params(String guest, int price, int budget) {}

  private static Action booking(String name, String summary, String what) {
    Action.Do book =
        (db, message) -> {
          String guest = Json.decoded(message.getParams(), Params.class).guest();
          book(db, message.getCall().getIdempotencyKey(), what, guest);
          return Json.payload(what + " for " + guest);
        };
    return new Action(name, summary, book, Trip::giveBack);
  }

  private static Payload takePayment(Connection db, DoRequest message) throws Exception {
    Params params = Json.decoded(message.getParams(), Params.class);
    if (params.price() > params.budget()) {
      throw new Action.Failed(params.guest() + " cannot pay " + params.price() + ".", "too_expensive");
    }
    String booked =
        message.getInputsMap().values().stream()
            .map(input -> Json.decoded(input, String.class))
            .sorted()
            .collect(Collectors.joining(", "));
    book(db, message.getCall().getIdempotencyKey(), "payment", params.guest());
    return Json.payload(params.guest() + " paid " + params.price() + " for: " + booked);
  }

  private static void book(Connection db, String key, String what, String guest) throws SQLException {
    try (var insert = db.prepareStatement("INSERT INTO bookings VALUES (?, ?, ?)")) {
      insert.setString(1, key);
      insert.setString(2, what);
      insert.setString(3, guest);
      insert.executeUpdate();
    }
  }

  private static void giveBack(Connection db, UndoRequest message) throws SQLException {
    try (var delete = db.prepareStatement("DELETE FROM bookings WHERE key = ?")) {
      delete.setString(1, message.getCall().getIdempotencyKey());
      delete.executeUpdate();
    }
  }

  private Trip() {}
}
