// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package simnode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// pingPatience is how long an answer may take, the neighbour's discovery
// included.
const pingPatience = 3 * time.Second

// Ping sends count ICMP echo requests from the namespace, one after the other,
// and returns how long each answer took.
func (n *Netns) Ping(ctx context.Context, to netip.Addr, count int) (times []time.Duration, err error) {
	var conn *icmp.PacketConn
	err = n.do(func() (err error) {
		conn, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	for seq := range count {
		rtt, err := echo(conn, to, seq+1)
		if err != nil {
			return times, fmt.Errorf("ping %s: %w", to, errors.Join(err, ctx.Err()))
		}
		times = append(times, rtt)
	}
	return times, nil
}

func echo(conn *icmp.PacketConn, to netip.Addr, seq int) (time.Duration, error) {
	id := os.Getpid() & 0xffff
	request, err := (&icmp.Message{
		Type: ipv4.ICMPTypeEcho,
		Body: &icmp.Echo{ID: id, Seq: seq, Data: make([]byte, 56)},
	}).Marshal(nil)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := conn.SetReadDeadline(start.Add(pingPatience)); err != nil {
		return 0, err
	}
	if _, err := conn.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return 0, err
	}
	buf := make([]byte, 1500)
	for {
		size, _, err := conn.ReadFrom(buf)
		if err != nil {
			return 0, err
		}
		answer, err := icmp.ParseMessage(ipv4.ICMPTypeEcho.Protocol(), buf[:size])
		if err != nil || answer.Type != ipv4.ICMPTypeEchoReply {
			continue // somebody else's
		}
		if body, ok := answer.Body.(*icmp.Echo); ok && body.ID == id && body.Seq == seq {
			return time.Since(start), nil
		}
	}
}
