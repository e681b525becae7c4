// Serves the actions until SIGTERM: actionserver HOST:PORT FILE [ACTION...]
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	secv1 "example.com/actionserver/sec/v1"
)

const (
	largestCall = 64 << 20 // the most that an SEC node sends
	grace       = 10 * time.Second
)

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: actionserver HOST:PORT FILE [ACTION...]")
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		log.Fatal(err)
	}
}

func serve(address, file string, names []string) error {
	actions := slices.DeleteFunc(slices.Concat(tripActions, conformanceActions), func(action Action) bool {
		return len(names) > 0 && !slices.Contains(names, action.Name)
	})
	service, err := NewServer("go", file, tripTables+conformanceTables, actions)
	if err != nil {
		return err
	}
	defer service.Close()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(largestCall))
	secv1.RegisterActionServerServer(server, service)
	healthy := health.NewServer()
	healthy.SetServingStatus(secv1.ActionServer_ServiceDesc.ServiceName, grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(server, healthy)

	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	for _, sec := range strings.Split(os.Getenv("SEC_ADDRESSES"), ",") {
		if sec != "" {
			go keepRegistered(stopped, sec, service, address)
		}
	}
	go func() {
		<-stopped.Done()
		healthy.Shutdown() // no new calls
		time.AfterFunc(grace, server.Stop)
		server.GracefulStop()
	}()
	fmt.Printf("The action server listens at %s.\n", address)
	return server.Serve(listener)
}
