package main

import (
	"context"
	"database/sql"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	_ "modernc.org/sqlite"

	secv1 "example.com/actionserver/sec/v1"
)

// A Server keeps the obligations of the contract for its actions. Each call is one transaction: it remembers the epoch, has
// the effect, and marks the key with what it answers.
type Server struct {
	secv1.UnimplementedActionServerServer
	name    string
	actions []Action
	db      *sql.DB
}

// NewServer opens the file, and makes the tables of the actions in it.
func NewServer(name, file, tables string, actions []Action) (*Server, error) {
	db, err := sql.Open("sqlite", "file:"+file+"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // one transaction at a time
	if _, err := db.Exec(obligationTables + tables); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &Server{name: name, actions: actions, db: db}, nil
}

func (s *Server) Close() error { return s.db.Close() }

func (s *Server) Describe(context.Context, *secv1.DescribeRequest) (*secv1.DescribeResponse, error) {
	answer := &secv1.DescribeResponse{ServerName: s.name}
	for _, action := range s.actions {
		answer.Actions = append(answer.Actions, &secv1.ActionDescription{Name: action.Name, Summary: action.Summary})
	}
	return answer, nil
}

func (s *Server) Do(ctx context.Context, m *secv1.DoRequest) (answer *secv1.DoResponse, err error) {
	action, err := s.offered(m.GetCall())
	if err != nil {
		return nil, err
	}
	if action.Prepare != nil {
		if err := action.Prepare(ctx, m); err != nil {
			return nil, status.FromContextError(err).Err()
		}
	}
	err = s.inTransaction(func(tx *sql.Tx) error {
		answer, err = doOnce(tx, action, m)
		return err
	})
	return answer, err
}

func (s *Server) Undo(ctx context.Context, m *secv1.UndoRequest) (answer *secv1.UndoResponse, err error) {
	action, err := s.offered(m.GetCall())
	if err != nil {
		return nil, err
	}
	err = s.inTransaction(func(tx *sql.Tx) error {
		answer, err = undoOnce(tx, action, m)
		return err
	})
	return answer, err
}

func (s *Server) offered(call *secv1.Call) (Action, error) {
	for _, action := range s.actions {
		if action.Name == call.GetAction() {
			return action, nil
		}
	}
	return Action{}, status.Errorf(codes.Unimplemented, "The action %q is not offered here.", call.GetAction())
}
