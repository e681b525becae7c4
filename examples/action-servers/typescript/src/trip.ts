import type Database from "libsql";
import type { DoRequest, UndoRequest } from "../gen/sec/v1/action_server.js";
import { type Action, Failed } from "./action.js";
import { decoded, jsonPayload } from "./json.js";

export const TRIP_TABLES =
  "CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, what TEXT NOT NULL, guest TEXT NOT NULL);";

interface Params {
  guest: string;
  price: number;
  budget: number;
}

function book(db: Database.Database, message: DoRequest, what: string, guest: string): void {
  db.prepare("INSERT INTO bookings VALUES (?, ?, ?)").run(message.call?.idempotencyKey, what, guest);
}

function giveBack(db: Database.Database, message: UndoRequest): void {
  db.prepare("DELETE FROM bookings WHERE key = ?").run(message.call?.idempotencyKey);
}

function booking(name: string, summary: string, what: string): Action {
  return {
    name,
    summary,
    do(db, message) {
      const { guest } = decoded<Params>(message.params);
      book(db, message, what, guest);
      return jsonPayload(`${what} for ${guest}`);
    },
    undo: giveBack,
  };
}

export const TRIP: Action[] = [
  booking("book_hotel", "Books a room.", "hotel"),
  booking("rent_car", "Rents a car.", "car"),
  booking("book_flight", "Books a seat.", "flight"),
  booking("insure_trip", "Insures the guest.", "insurance"),
  {
    name: "take_payment",
    summary: "Charges the guest for the trip.",
    do(db, message) {
      const { guest, price, budget } = decoded<Params>(message.params);
      if (price > budget) throw new Failed(`${guest} cannot pay ${price}.`, "too_expensive");
      const booked = [...message.inputs.values()].map((input) => decoded<string>(input)).sort();
      book(db, message, "payment", guest);
      return jsonPayload(`${guest} paid ${price} for: ${booked.join(", ")}`);
    },
    undo: giveBack,
  },
];
