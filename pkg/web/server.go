// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

//go:embed page
var files embed.FS

// Listen opens a port on loopback; 0 is any that is free.
func Listen(address string, port uint16) (net.Listener, error) {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return nil, fmt.Errorf("--address %q is not an IP address: want 127.0.0.1 or ::1", address)
	}
	if !addr.IsLoopback() {
		return nil, fmt.Errorf("--address %s is not on loopback: the page shows what you may see, so it is for this machine only. Forward a port (ssh -L) to see it from another one", address)
	}
	return net.Listen("tcp", netip.AddrPortFrom(addr, port).String())
}

// Server serves the page.
type Server struct {
	guard *guard
	addr  netip.AddrPort
}

// New makes the server of a page that shows the copy of a record, under the address that it
// listens on. cluster says which one it is.
func New(record *inspect.Copy, addr net.Addr, cluster string) (*Server, error) {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return nil, err
	}
	page, err := fs.Sub(files, "page")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServerFS(page))
	(&answers{record: record, cluster: cluster}).register(mux)
	return &Server{guard: newGuard(at, mux), addr: at}, nil
}

// URL is what the user opens. It has the token.
func (s *Server) URL() string { return "http://" + s.addr.String() + "/?token=" + s.guard.token }

// Serve serves until the context ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler: s.guard, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 16, ErrorLog: log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx }, // ends the streams
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // nobody has anything to lose
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
