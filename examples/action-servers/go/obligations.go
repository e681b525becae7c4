package main

import (
	"database/sql"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	secv1 "example.com/actionserver/sec/v1"
)

// What the mark of a key says. A key without one was never seen, or had no effect so far.
const (
	done       = "done"
	failed     = "failed"
	undoFailed = "undo failed"
	undone     = "undone"
)

const obligationTables = `
	CREATE TABLE IF NOT EXISTS epochs (saga_uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
	CREATE TABLE IF NOT EXISTS marks (key TEXT PRIMARY KEY, mark TEXT NOT NULL, answer BLOB);`

func doOnce(tx *sql.Tx, action Action, m *secv1.DoRequest) (*secv1.DoResponse, error) {
	key := m.GetCall().GetIdempotencyKey()
	if err := rememberEpoch(tx, m.GetCall()); err != nil {
		return nil, err
	}
	mark, stored, err := known(tx, key)
	if err != nil {
		return nil, err
	}
	answer := &secv1.DoResponse{}
	switch mark {
	case done, failed:
		return answer, proto.Unmarshal(stored, answer)
	case undone:
		failure := &secv1.Error{Message: "It was undone before.", Code: "undone"}
		return &secv1.DoResponse{Result: &secv1.DoResponse_Failure{Failure: failure}}, nil
	case undoFailed:
		return nil, status.Error(codes.Unavailable, "Its undo has failed.")
	}

	mark = done
	err = effect(tx, func() error {
		output, err := action.Do(tx, m)
		answer.Result = &secv1.DoResponse_Output{Output: output}
		return err
	})
	if failure := (*Failure)(nil); errors.As(err, &failure) {
		mark, answer.Result = failed, &secv1.DoResponse_Failure{Failure: failure.proto()}
	} else if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	stored, err = proto.Marshal(answer)
	if err != nil {
		return nil, err
	}
	return answer, remember(tx, key, mark, stored)
}

func undoOnce(tx *sql.Tx, action Action, m *secv1.UndoRequest) (*secv1.UndoResponse, error) {
	key := m.GetCall().GetIdempotencyKey()
	if err := rememberEpoch(tx, m.GetCall()); err != nil {
		return nil, err
	}
	mark, stored, err := known(tx, key)
	if err != nil {
		return nil, err
	}
	tookEffect := mark == done || mark == undoFailed || mark == "" && m.Output != nil
	if tookEffect && action.Undo != nil {
		err := effect(tx, func() error { return action.Undo(tx, m) })
		if failure := (*Failure)(nil); errors.As(err, &failure) {
			return &secv1.UndoResponse{Failure: failure.proto()}, remember(tx, key, undoFailed, stored)
		} else if err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
	}
	return &secv1.UndoResponse{}, remember(tx, key, undone, nil)
}

// rememberEpoch refuses a call whose epoch is below the highest seen for its saga.
func rememberEpoch(tx *sql.Tx, call *secv1.Call) error {
	var highest int64
	err := tx.QueryRow("SELECT epoch FROM epochs WHERE saga_uid = ?", call.SagaUid).Scan(&highest)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if err == nil && highest > call.Epoch {
		return status.Errorf(codes.FailedPrecondition, "Epoch %d is stale: %d has been seen.", call.Epoch, highest)
	}
	_, err = tx.Exec("INSERT OR REPLACE INTO epochs VALUES (?, ?)", call.SagaUid, call.Epoch)
	return err
}

// known answers the mark of a key, and what its do answered.
func known(tx *sql.Tx, key string) (mark string, answer []byte, err error) {
	err = tx.QueryRow("SELECT mark, answer FROM marks WHERE key = ?", key).Scan(&mark, &answer)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return mark, answer, err
}

func remember(tx *sql.Tx, key, mark string, answer []byte) error {
	_, err := tx.Exec("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", key, mark, answer)
	return err
}
