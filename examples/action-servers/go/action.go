package main

import (
	"context"
	"database/sql"

	secv1 "example.com/actionserver/sec/v1"
)

// An Action has its effect in the transaction that it gets, and nowhere else.
type Action struct {
	Name    string
	Summary string
	// Prepare comes before a do, outside of its transaction: what is slow goes there. May be nil.
	Prepare func(context.Context, *secv1.DoRequest) error
	Do      func(*sql.Tx, *secv1.DoRequest) (*secv1.Payload, error)
	// Undo is nil where nothing has to be undone.
	Undo func(*sql.Tx, *secv1.UndoRequest) error
}

// A Failure, as the error of an action, says that it has no effect and never will. Of an undo: it cannot be done.
// Any other error leaves the outcome unknown, and the call comes again.
type Failure struct{ Message, Code string }

func (f *Failure) Error() string { return f.Message }

func (f *Failure) proto() *secv1.Error { return &secv1.Error{Message: f.Message, Code: f.Code} }
