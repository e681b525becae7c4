package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	secv1 "example.com/actionserver/sec/v1"
)

const tripTables = "CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, what TEXT NOT NULL, guest TEXT NOT NULL);"

var tripActions = []Action{
	booking("book_hotel", "Books a room.", "hotel"),
	booking("rent_car", "Rents a car.", "car"),
	booking("book_flight", "Books a seat.", "flight"),
	booking("insure_trip", "Insures the guest.", "insurance"),
	{Name: "take_payment", Summary: "Charges the guest for the trip.", Do: takePayment, Undo: giveBack},
}

type tripParams struct {
	Guest         string
	Price, Budget int
}

func booking(name, summary, what string) Action {
	do := func(tx *sql.Tx, m *secv1.DoRequest) (*secv1.Payload, error) {
		trip, err := decoded[tripParams](m.Params)
		if err != nil {
			return nil, err
		}
		if err := book(tx, m.Call.IdempotencyKey, what, trip.Guest); err != nil {
			return nil, err
		}
		return jsonPayload(what + " for " + trip.Guest)
	}
	return Action{Name: name, Summary: summary, Do: do, Undo: giveBack}
}

func book(tx *sql.Tx, key, what, guest string) error {
	_, err := tx.Exec("INSERT INTO bookings VALUES (?, ?, ?)", key, what, guest)
	return err
}

func giveBack(tx *sql.Tx, m *secv1.UndoRequest) error {
	_, err := tx.Exec("DELETE FROM bookings WHERE key = ?", m.Call.IdempotencyKey)
	return err
}

func takePayment(tx *sql.Tx, m *secv1.DoRequest) (*secv1.Payload, error) {
	trip, err := decoded[tripParams](m.Params)
	if err != nil {
		return nil, err
	}
	if trip.Price > trip.Budget {
		return nil, &Failure{fmt.Sprintf("%s cannot pay %d.", trip.Guest, trip.Price), "too_expensive"}
	}
	var booked []string
	for _, input := range m.Inputs {
		what, err := decoded[string](input)
		if err != nil {
			return nil, err
		}
		booked = append(booked, what)
	}
	slices.Sort(booked)
	if err := book(tx, m.Call.IdempotencyKey, "payment", trip.Guest); err != nil {
		return nil, err
	}
	return jsonPayload(fmt.Sprintf("%s paid %d for: %s", trip.Guest, trip.Price, strings.Join(booked, ", ")))
}

func decoded[T any](payload *secv1.Payload) (value T, err error) {
	err = json.Unmarshal(payload.GetData(), &value)
	return value, err
}

func jsonPayload(value any) (*secv1.Payload, error) {
	data, err := json.Marshal(value)
	return &secv1.Payload{ContentType: "application/json", Data: data}, err
}
