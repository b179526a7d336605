// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is what /proc counts CPU time in, on every architecture Go runs on.
const clockTick = 10 * time.Millisecond

// cpuTime returns the CPU time of a process so far.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// From the field behind the process's name, which may have spaces.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	const user, system = 11, 12
	var ticks int
	for _, f := range fields[user : system+1] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// memory returns what is resident of a process now, and at most so far, in MiB.
func memory(pid int) (now, peak float64, err error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	for name, into := range map[string]*float64{"VmRSS": &now, "VmHWM": &peak} {
		if _, err := fmt.Sscan(field(path, name), into); err != nil {
			return 0, 0, fmt.Errorf("%s of %s: %w", name, path, err)
		}
		*into /= 1024
	}
	return now, peak, nil
}

// favourServers gives etcd and the API server the CPU before anything that is measured: on a
// cluster, a hundred plugins run on other machines. The report says whether that was allowed.
func (b *bench) favourServers() error {
	const nice = -10
	b.report.Machine.Favoured = true
	for _, name := range []string{"etcd", "kube-apiserver"} {
		pid, err := b.env.PID(name)
		if err != nil {
			return err
		}
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, thread := range threads { // those that they start later inherit it
			tid, err := strconv.Atoi(thread.Name())
			if err != nil {
				return err
			}
			err = unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
			if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
				b.report.Machine.Favoured = false
				b.say("%s competes with what is measured: only root can change that", name)
				break
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// calm waits until what was put into etcd is on the disk and the API server has
// digested it, so that it needs hardly any CPU time; a minute at most, for the
// machine may have other work.
func (b *bench) calm() error {
	unix.Sync()
	pid, err := b.env.PID("kube-apiserver")
	if err != nil {
		return err
	}
	last, err := cpuTime(pid)
	if err != nil {
		return err
	}
	for range 60 {
		if err := b.pause(time.Second); err != nil {
			return err
		}
		now, err := cpuTime(pid)
		if err != nil {
			return err
		}
		if now-last < 100*time.Millisecond {
			return nil
		}
		last = now
	}
	b.say("the API server is not at rest after a minute")
	return nil
}

// stores returns what is resident of the API server, and what etcd's database
// has in use, in MiB.
func (b *bench) stores() (server, database float64, err error) {
	pid, err := b.env.PID("kube-apiserver")
	if err != nil {
		return 0, 0, err
	}
	if server, _, err = memory(pid); err != nil {
		return 0, 0, err
	}
	body, err := b.get(b.env.EtcdURL() + "/metrics")
	if err != nil {
		return 0, 0, err
	}
	defer body.Close()
	database, err = metric(body, "etcd_mvcc_db_total_size_in_use_in_bytes")
	return server, database / (1 << 20), err
}
