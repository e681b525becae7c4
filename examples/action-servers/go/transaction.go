package main

import (
	"database/sql"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// effect takes back what the function has changed when it ends with an error. The epoch, which was remembered before, stays.
func effect(tx *sql.Tx, function func() error) error {
	if _, err := tx.Exec("SAVEPOINT effect"); err != nil {
		return err
	}
	err := function()
	if err != nil {
		if _, back := tx.Exec("ROLLBACK TO effect"); back != nil {
			return fmt.Errorf("%v, and then: %v", err, back)
		}
	}
	_, released := tx.Exec("RELEASE effect")
	return errors.Join(err, released)
}

// inTransaction commits also when the function refuses the call by a status: the epoch must stay. It is not cancelled with the
// call: what has begun is finished, and its answer kept for the next call.
func (s *Server) inTransaction(function func(*sql.Tx) error) error {
	tx, err := s.db.Begin()
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	answer := function(tx)
	if _, isStatus := status.FromError(answer); !isStatus {
		return status.Error(codes.Unavailable, errors.Join(answer, tx.Rollback()).Error())
	}
	if err := tx.Commit(); err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return answer
}
