// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A program that links this package is something else when its first argument is
// one of these: the first process of a machine, or the registry.
const (
	initName     = "crd-ipam-cluster-init"
	registryName = "crd-ipam-cluster-registry"
	self         = "/proc/self/exe"
)

func init() {
	if len(os.Args) != 3 || os.Args[0] != self {
		return
	}
	switch os.Args[1] {
	case initName:
		fmt.Fprintln(os.Stderr, "init:", runInit(os.Args[2]))
		os.Exit(1)
	case registryName:
		fmt.Fprintln(os.Stderr, "registry:", serveRegistry(os.Args[2]))
		os.Exit(1)
	}
}

// runInit is the first process of a machine. It does not return but for errors.
func runInit(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s spec
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	// The links are there when this line is.
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return fmt.Errorf("waiting for the network: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return err
	}
	if err := mountAll(s.Disk); err != nil {
		return err
	}
	return supervise(s)
}

// ownDirs are the directories that each node has of its own, on its disk.
var ownDirs = []string{"/etc", "/opt", "/var/lib", "/var/log"}

// sysctls that the kubelet sets are the host's: it is given files to write to.
var sysctls = []string{
	"/proc/sys/vm/overcommit_memory",
	"/proc/sys/vm/panic_on_oom",
	"/proc/sys/kernel/panic",
	"/proc/sys/kernel/panic_on_oops",
	"/proc/sys/kernel/keys/root_maxkeys",
	"/proc/sys/kernel/keys/root_maxbytes",
}

// mountAll makes the machine's view of the file system out of the host's.
func mountAll(disk string) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if disk == "" {
		return nil
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, dir := range ownDirs {
		if err := mount(filepath.Join(disk, dir), dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := mountSys(); err != nil {
		return err
	}
	for _, path := range sysctls {
		if err := hideFile(path); err != nil {
			return err
		}
	}
	// What the kubelet mounts for a container has to get into it.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// mountSys mounts sysfs for this network namespace, with the host's cgroups.
func mountSys() error {
	const aside = "/run/cgroup"
	if err := os.Mkdir(aside, 0o755); err != nil {
		return err
	}
	if err := mount("/sys/fs/cgroup", aside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	return mount(aside, "/sys/fs/cgroup", "", unix.MS_MOVE, "")
}

// hideFile puts a copy over a file, so that writes to it change nothing.
func hideFile(path string) error {
	content, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	duplicate := filepath.Join("/run", "sysctl-"+filepath.Base(path))
	if err := os.WriteFile(duplicate, content, 0o644); err != nil {
		return err
	}
	return mount(duplicate, path, "", unix.MS_BIND, "")
}

func mount(source, target, fs string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fs, flags, data); err != nil {
		return &os.PathError{Op: "mount " + source, Path: target, Err: err}
	}
	return nil
}

// restartDelay keeps a service that cannot start from being all that the machine
// does: some wait for another one.
const restartDelay = 300 * time.Millisecond

// supervise keeps the services running, and reaps whatever else ends here.
func supervise(s spec) error {
	ended := make(chan int)
	running := map[int]service{}
	start := func(svc service) error {
		pid, err := launch(s, svc)
		if err != nil {
			return fmt.Errorf("%s: %w", svc.Name, err)
		}
		running[pid] = svc
		return nil
	}
	for _, svc := range s.Services {
		if err := start(svc); err != nil {
			return err
		}
	}
	go func() {
		for {
			pid, err := unix.Wait4(-1, nil, 0, nil)
			if err == nil {
				ended <- pid
			} else { // nothing runs; a service that is held comes back
				time.Sleep(restartDelay)
			}
		}
	}()
	again := make(chan service)
	for {
		select {
		case pid := <-ended:
			if svc, ok := running[pid]; ok {
				delete(running, pid)
				fmt.Println(time.Now().Format(time.RFC3339), svc.Name, "has ended")
				go func() { again <- released(s.Hold, svc) }()
			}
		case svc := <-again:
			if err := start(svc); err != nil {
				return err
			}
		}
	}
}

// released returns svc when it may be started again.
func released(hold string, svc service) service {
	for {
		time.Sleep(restartDelay)
		if _, err := os.Stat(filepath.Join(hold, svc.Name)); os.IsNotExist(err) {
			return svc
		}
	}
}

func launch(s spec, svc service) (int, error) {
	log, err := os.OpenFile(filepath.Join(s.Logs, svc.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	// Not os/exec, which would wait for the process itself.
	process, err := os.StartProcess(svc.Args[0], svc.Args, &os.ProcAttr{
		Dir: "/", Env: append(os.Environ(), svc.Env...), Files: []*os.File{null, log, log},
	})
	if err != nil {
		return 0, err
	}
	pid := process.Pid
	return pid, process.Release()
}
