// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is what the numbers were measured on.
type machine struct {
	Commit    string `json:"commit"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryGiB int    `json:"memoryGiB"`
	Disk      string `json:"disk"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
	Kube      string `json:"kube"`
	Etcd      string `json:"etcd"`
	// Favoured is true if etcd and the API server had the CPU before anything that was measured.
	Favoured bool `json:"favoured"`
	// Load is the load average of the minute before.
	Load string `json:"load"`
}

// file systems in memory, where flushing to the disk costs nothing.
const tmpfsMagic, ramfsMagic = 0x01021994, 0x858458f6

func (b *bench) describeMachine() error {
	m := &b.report.Machine
	m.CPUs, m.Go = runtime.NumCPU(), runtime.Version()
	m.CPU = field("/proc/cpuinfo", "model name")
	var kib int
	if _, err := fmt.Sscan(field("/proc/meminfo", "MemTotal"), &kib); err != nil {
		return fmt.Errorf("/proc/meminfo: %w", err)
	}
	m.MemoryGiB = (kib + 1<<19) >> 20
	m.Load = "unknown"
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(data), " ")
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	m.Kernel = unix.ByteSliceToString(uts.Release[:])
	var fs unix.Statfs_t
	if err := unix.Statfs(b.env.Dir, &fs); err != nil {
		return err
	}
	if fs.Type == tmpfsMagic || fs.Type == ramfsMagic {
		return fmt.Errorf("%s is in memory: set TMPDIR to a directory on a disk", b.env.Dir)
	}
	m.Disk = "a local disk"
	if fs.Type == unix.EXT4_SUPER_MAGIC {
		m.Disk = "ext4"
	}
	version, err := b.kube.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	m.Kube = version.GitVersion
	out, err := exec.Command(filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "etcd"), "--version").Output()
	if err != nil {
		return fmt.Errorf("etcd --version: %w", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	m.Etcd = strings.TrimPrefix(first, "etcd Version: ")
	m.Commit = "an unknown commit"
	if out, err := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	return nil
}

// field returns a value of a file of "name: value" lines.
func field(path, name string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
