// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// host is a node's disk, and a network configuration for one pool.
type host struct {
	b          *bench
	node, pool string
	plugin     string
	kubeconfig string
	dir        string
	stdin      []byte
}

// host returns node i with a disk of its own for what is measured with that
// pool; hosts of the same name share a disk.
func (b *bench) host(i int, disk, pool string) (*host, error) {
	h := &host{b: b, node: hostName(i), pool: pool, plugin: b.plugin, kubeconfig: b.kubeconfigs[i], dir: filepath.Join(b.env.Dir, "hosts", disk+"-"+hostName(i))}
	return h, h.configure(h.kubeconfig)
}

func (h *host) configure(kubeconfig string) error {
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return err
	}
	conf, err := json.Marshal(map[string]any{
		"kubeconfig": kubeconfig, "poolsNamespace": namespace,
		"dataDir": h.dataDir(), "logFile": filepath.Join(h.dir, "log"),
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(h.dir, "nv-ipam.conf"), conf, 0o600); err != nil {
		return err
	}
	h.stdin, err = json.Marshal(map[string]any{
		"cniVersion": "0.4.0", "name": "net", "type": "macvlan", "master": "eth0", "mode": "bridge",
		"ipam": map[string]any{"type": "nv-ipam", "confDir": h.dir, "poolName": h.pool},
	})
	return err
}

func (h *host) dataDir() string { return filepath.Join(h.dir, "data") }

// sample is what one process cost.
type sample struct {
	wall, cpu time.Duration
	started   time.Time
	stdout    []byte
}

// container returns an ID as runtimes make them.
func (b *bench) container() string {
	b.containers++
	sum := sha256.Sum256([]byte(strconv.Itoa(b.containers)))
	return hex.EncodeToString(sum[:])
}

// attached returns n containers.
func (b *bench) attached(n int) []string {
	var out []string
	for range n {
		out = append(out, b.container())
	}
	return out
}

// command is a call of the plugin as a runtime makes it; args are further
// CNI_ARGS.
func (h *host) command(verb, container, args string) *exec.Cmd {
	if args != "" {
		args = ";" + args
	}
	cmd := exec.CommandContext(h.b.ctx, h.plugin)
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + container, "CNI_IFNAME=net1",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-" + container[:10] +
			";K8S_POD_INFRA_CONTAINER_ID=" + container + ";K8S_POD_UID=9d9a3f0e-2a5c-4f0e-8a53-0d3f0c6f6a11" + args,
		// The plugin alone, without the main plugin that enters the container's
		// namespace: skel has to be told that this is no mistake.
		"CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=1", "CNI_PATH=" + filepath.Dir(h.plugin),
	}
	cmd.Stdin = bytes.NewReader(h.stdin)
	return cmd
}

func (h *host) call(verb, container, args string) (sample, error) {
	s, err := measure(h.command(verb, container, args))
	if err != nil {
		return s, fmt.Errorf("%s of pool %s on %s: %w", verb, h.pool, h.node, err)
	}
	return s, nil
}

// floor is a process that makes one create and ends; each i is another address.
func (b *bench) floor(i int) (sample, error) {
	s, err := measure(b.floorCommand(i, b.kubeconfigs[i%hostCount]))
	if err != nil {
		return s, fmt.Errorf("floor: %w", err)
	}
	return s, nil
}

func (b *bench) floorCommand(i int, kubeconfig string) *exec.Cmd {
	sum := sha256.Sum256([]byte("floor" + strconv.Itoa(i)))
	address := netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)})
	return exec.CommandContext(b.ctx, b.floorPath, kubeconfig, namespace, hostName(i%hostCount), address.String(), hex.EncodeToString(sum[:]))
}

func measure(cmd *exec.Cmd) (sample, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	s := sample{started: time.Now()}
	err := cmd.Run()
	s.wall = time.Since(s.started)
	if err != nil {
		return s, fmt.Errorf("%w: %s %s", err, stdout.String(), stderr.String())
	}
	s.cpu = cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime()
	s.stdout = stdout.Bytes()
	return s, nil
}

// variant is one of several things that are measured in turns.
type variant struct {
	name  string
	call  func(i int) (sample, error)
	walls times
	cpus  times
}

// inTurns calls each variant n times, one after the other, so that whatever else
// the machine does falls on all of them alike.
func inTurns(n int, variants []*variant) error {
	for i := range n {
		for _, v := range variants {
			s, err := v.call(i)
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			v.walls = append(v.walls, s.wall)
			v.cpus = append(v.cpus, s.cpu)
		}
	}
	return nil
}

// atOnce makes n calls, c at a time, and returns how long all of them took.
func atOnce(c, n int, call func(i int) (sample, error)) (elapsed time.Duration, walls times, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := 0
	var errs []error
	begin := time.Now()
	for range min(c, n) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				failed := len(errs) > 0
				mu.Unlock()
				if i >= n || failed {
					return
				}
				s, err := call(i)
				mu.Lock()
				walls = append(walls, s.wall)
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return time.Since(begin), walls, errors.Join(errs...)
}

// floorVariant returns the floor as one of the things to measure, with
// addresses of its own.
func (b *bench) floorVariant() *variant {
	at := b.floors
	b.floors += floorsPerPhase
	return &variant{name: "floor", call: func(i int) (sample, error) { return b.floor(at + i) }}
}

// floorsPerPhase is more than one phase has the floor claim.
const floorsPerPhase = 10_000
