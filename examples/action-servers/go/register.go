package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	secv1 "example.com/actionserver/sec/v1"
)

// keepRegistered tells an SEC node where this server is, again before that is forgotten.
func keepRegistered(stopped context.Context, sec string, service *Server, address string) {
	connection, err := grpc.NewClient(sec, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Printf("not registered at %s: %v", sec, err)
		return
	}
	defer connection.Close()
	coordinator := secv1.NewCoordinatorClient(connection)
	about, _ := service.Describe(stopped, nil)
	me := &secv1.RegisterActionServerRequest{
		InstanceId: fmt.Sprintf("go-%d", time.Now().UnixNano()),
		ServerName: about.ServerName,
		Address:    address,
		Actions:    about.Actions,
	}
	for stopped.Err() == nil {
		pause := time.Second
		call, done := context.WithTimeout(stopped, 5*time.Second)
		if answer, err := coordinator.RegisterActionServer(call, me); err != nil {
			log.Printf("not registered at %s: %v", sec, err)
		} else {
			pause = time.Duration(answer.TtlS / 3 * float64(time.Second))
		}
		done()
		select {
		case <-time.After(pause):
		case <-stopped.Done():
		}
	}
}
