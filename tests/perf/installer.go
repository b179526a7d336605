// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/install"
	"github.com/crd-ipam/crd-ipam/tests/internal/simnode"
)

// resting is an installer that has done its work.
type resting struct {
	process *simnode.Process
	pid     int
	dir     string
	used    time.Duration // of the CPU, until since
	since   time.Time
}

// startInstaller installs the plugin below a directory, as on a node, and waits until that is ready.
func (b *bench) startInstaller() (*resting, error) {
	dir := filepath.Join(b.env.Dir, "installer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	probes := "--health-probe-bind-address=unix:" + filepath.Join(dir, "probes")
	cmd := exec.Command(b.installerPath, probes, "--host-root=/", "--kubeconfig="+b.env.Kubeconfig, "--ippools-namespace="+namespace,
		"--node-name="+hostName(0), "--cni-nv-ipam-bin-file="+b.plugin, "--cni-bin-dir="+filepath.Join(dir, "bin"),
		"--cni-conf-dir="+filepath.Join(dir, "conf"), "--cni-data-dir="+filepath.Join(dir, "data"),
		"--cni-log-file="+filepath.Join(dir, "log"), "--cni-kubeconfig="+b.kubeconfigs[0])
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	process, err := simnode.StartProcess(cmd)
	if err != nil {
		return nil, err
	}
	r := &resting{process: process, pid: cmd.Process.Pid, dir: dir}
	err = b.until("the installer is ready", func() (bool, error) {
		select {
		case <-process.Done():
			return false, fmt.Errorf("the installer has ended: %s", log.Bytes())
		default:
			return exec.Command(b.installerPath, "--probe=readyz", probes).Run() == nil, nil
		}
	})
	if err != nil {
		return nil, errors.Join(err, process.Stop())
	}
	return r, nil
}

// begin is where its rest begins.
func (r *resting) begin() (err error) {
	r.since = time.Now()
	r.used, err = preciseCPUTime(r.pid)
	return err
}

// installerAtRest tells what an installer has used since begin, and stops it.
func (b *bench) installerAtRest(r *resting) error {
	used, err := preciseCPUTime(r.pid)
	if err != nil {
		return err
	}
	elapsed := time.Since(r.since)
	now, _, err := memory(r.pid)
	if err != nil {
		return err
	}
	if err := r.process.Stop(); err != nil {
		return fmt.Errorf("the installer ended with: %w", err)
	}
	status, err := b.statusCPU(r.dir)
	if err != nil {
		return err
	}
	own, share := float64((used-r.used).Microseconds())/1000/elapsed.Minutes(), status/install.StatusInterval.Minutes()
	perMinute := own + share
	t := b.table("Installer", fmt.Sprintf("On a node where nothing changes, beside the phases that the controller is measured in. The plugin's STATUS, which it starts once in %g minutes at most, is measured by itself, %d times (p50), and added in its proportion: "+
		"the sum is computed, for whether a STATUS happens to come within these minutes would decide it.", install.StatusInterval.Minutes(), few), "minutes", "CPU ms each", "CPU ms a minute", "resident MiB")
	t.add("the installer itself", elapsed.Minutes(), none, own, now)
	t.add("STATUS", none, status, share, none)
	t.add("at rest, computed", none, none, perMinute, none)
	b.say("installer at rest: %.2f ms of CPU a minute in %.1f minutes, and %.2f for STATUS, %.1f MiB", own, elapsed.Minutes(), share, now)
	b.target("installer at rest, CPU a minute", perMinute, 5, " ms")
	b.target("installer at rest, memory", now, 12, " MiB")
	return nil
}

// statusCPU is the CPU time of a STATUS, in milliseconds, as the installer asks for it.
func (b *bench) statusCPU(dir string) (float64, error) {
	var cpus times
	for range few {
		cmd := exec.CommandContext(b.ctx, filepath.Join(dir, "bin", "nv-ipam"))
		cmd.Env = []string{"CNI_COMMAND=STATUS", "CNI_PATH=" + filepath.Join(dir, "bin")}
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","type":"nv-ipam","ipam":{"type":"nv-ipam","confDir":%q,"poolName":"status"}}`, filepath.Join(dir, "conf")))
		s, err := measure(cmd)
		if err != nil {
			return 0, fmt.Errorf("STATUS: %w", err)
		}
		cpus = append(cpus, s.cpu)
	}
	return cpus.p50(), nil
}

// preciseCPUTime is the CPU time of a process whose threads do not end, without its children.
func preciseCPUTime(pid int) (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, path := range threads {
		data, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(data), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}
