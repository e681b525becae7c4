package main

import (
	"context"
	"database/sql"
	"errors"
	"time"

	secv1 "example.com/actionserver/sec/v1"
)

const conformanceTables = "CREATE TABLE IF NOT EXISTS balances (saga_uid TEXT PRIMARY KEY, balance INTEGER NOT NULL);"

// Called by `secctl conformance`; docs/action-servers.md specifies them.
var conformanceActions = []Action{
	{Name: "conformance.add", Summary: "Adds to the balance of a saga.", Prepare: wait, Do: add, Undo: takeOff},
	{Name: "conformance.balance", Summary: "Reads the balance of a saga.", Do: balance},
	{Name: "conformance.echo", Summary: "Answers what it gets.", Do: echo},
}

type addParams struct {
	Amount          int64
	SleepMs         int64 `json:"sleep_ms"`
	Unavailable     uint32
	Fail            uint32
	Message         string
	UndoUnavailable uint32 `json:"undo_unavailable"`
	UndoFail        uint32 `json:"undo_fail"`
}

func wait(ctx context.Context, m *secv1.DoRequest) error {
	params, err := decoded[addParams](m.Params)
	if err != nil {
		return err
	}
	select {
	case <-time.After(time.Duration(params.SleepMs) * time.Millisecond):
		return nil
	case <-ctx.Done(): // nothing has been done so far, and the call comes again
		return ctx.Err()
	}
}

func add(tx *sql.Tx, m *secv1.DoRequest) (*secv1.Payload, error) {
	params, err := decoded[addParams](m.Params)
	if err != nil {
		return nil, err
	}
	if err := behave(m.Call, params.Unavailable, params.Fail, params.Message); err != nil {
		return nil, err
	}
	if err := change(tx, m.Call.SagaUid, params.Amount); err != nil {
		return nil, err
	}
	return balance(tx, m)
}

func takeOff(tx *sql.Tx, m *secv1.UndoRequest) error {
	params, err := decoded[addParams](m.Params)
	if err != nil {
		return err
	}
	if err := behave(m.Call, params.UndoUnavailable, params.UndoFail, ""); err != nil {
		return err
	}
	return change(tx, m.Call.SagaUid, -params.Amount)
}

func behave(call *secv1.Call, unavailable, fail uint32, message string) error {
	switch {
	case call.Attempt <= unavailable:
		return errors.New("Not available, as it was told.")
	case call.Attempt <= fail:
		return &Failure{message, "refused"}
	}
	return nil
}

func change(tx *sql.Tx, sagaUID string, amount int64) error {
	_, err := tx.Exec(`INSERT INTO balances VALUES (?1, ?2)
		ON CONFLICT (saga_uid) DO UPDATE SET balance = balance + ?2`, sagaUID, amount)
	return err
}

func balance(tx *sql.Tx, m *secv1.DoRequest) (*secv1.Payload, error) {
	var sum int64
	err := tx.QueryRow("SELECT balance FROM balances WHERE saga_uid = ?", m.Call.SagaUid).Scan(&sum)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	return jsonPayload(sum)
}

func echo(_ *sql.Tx, m *secv1.DoRequest) (*secv1.Payload, error) {
	return m.Inputs["payload"], nil
}
