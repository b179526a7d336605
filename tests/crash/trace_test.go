// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// step is one moment of a process: the entry of a system call that changes
// something outside of it, or its exit where it did.
type step struct {
	call, object string
	exit         bool
}

func (s step) String() string { return s.call + " " + s.object }

// outcome is how a traced process ended.
type outcome struct {
	steps  []step // as far as it came
	killed bool   // at the last of steps
	code   int    // exit code, where it was not killed
	stdout []byte
}

// tracer follows all threads of one process, from its first instruction on.
type tracer struct {
	pid    int
	dir    string // left out of the names of files
	memory *os.File
	// inside is the call that each thread has entered; nil for one that changes
	// nothing.
	inside map[int]*step
	steps  []step
}

// trace runs a program with its arguments and kills it, as kill -9 does, at its n-th
// step; 0 lets it live. Files are named relative to dir.
func trace(t *testing.T, argv, environ []string, stdin []byte, dir string, n int) outcome {
	t.Helper()
	// Only the thread that started the process may trace it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	input, output := pipe(t), pipe(t)
	if _, err := input.w.Write(stdin); err != nil { // fits into the pipe
		t.Fatal(err)
	}
	input.w.Close()
	process, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Env:   environ,
		Files: []*os.File{input.r, output.w, os.Stderr},
		// A group of its own, so that waiting for it takes no other test's children.
		Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	input.r.Close()
	output.w.Close()
	tr := &tracer{pid: process.Pid, dir: dir, inside: map[int]*step{}}
	out, err := tr.run(n)
	if err != nil {
		_ = syscall.Kill(tr.pid, syscall.SIGKILL)
		t.Fatalf("tracing: %v", err)
	}
	_ = process.Release() // run has waited for it
	if out.stdout, err = io.ReadAll(output.r); err != nil {
		t.Fatal(err)
	}
	output.r.Close()
	return out
}

type ends struct{ r, w *os.File }

func pipe(t *testing.T) ends {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return ends{r, w}
}

// run follows the process to its end.
func (tr *tracer) run(n int) (out outcome, err error) {
	var status syscall.WaitStatus
	if _, err := wait4(tr.pid, &status); err != nil { // stopped at its first instruction
		return out, err
	}
	if err := unix.PtraceSetOptions(tr.pid, unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL); err != nil {
		return out, err
	}
	if tr.memory, err = os.Open(fmt.Sprintf("/proc/%d/mem", tr.pid)); err != nil {
		return out, err
	}
	defer tr.memory.Close()
	if err := unix.PtraceSyscall(tr.pid, 0); err != nil {
		return out, err
	}
	for {
		tid, err := wait4(-tr.pid, &status)
		if errors.Is(err, syscall.ECHILD) { // the last thread has been waited for
			out.steps = tr.steps
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if !status.Stopped() {
			if tid == tr.pid {
				out.code = status.ExitStatus()
			}
			continue
		}
		signal, err := tr.stopped(tid, status)
		if err != nil {
			return out, err
		}
		if n > 0 && len(tr.steps) >= n && !out.killed {
			tr.steps, out.killed = tr.steps[:n], true
			if err := syscall.Kill(tr.pid, syscall.SIGKILL); err != nil {
				return out, err
			}
		}
		// A thread that is dying of the signal cannot be told to go on.
		if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return out, err
		}
	}
}

func wait4(pid int, status *syscall.WaitStatus) (int, error) {
	for {
		tid, err := syscall.Wait4(pid, status, unix.WALL, nil)
		if !errors.Is(err, syscall.EINTR) {
			return tid, err
		}
	}
}

// stopped notes where a thread has stopped and returns the signal to go on with.
func (tr *tracer) stopped(tid int, status syscall.WaitStatus) (signal int, err error) {
	const atSyscall = syscall.SIGTRAP | 0x80 // PTRACE_O_TRACESYSGOOD
	current, known := tr.inside[tid]
	if !known {
		tr.inside[tid] = nil
	}
	switch s := status.StopSignal(); {
	case s == atSyscall:
		return 0, tr.atSyscall(tid, current)
	case s == syscall.SIGTRAP: // it has made a thread
		return 0, nil
	case s == syscall.SIGSTOP && !known: // that is how a thread begins
		return 0, nil
	default:
		return int(s), nil
	}
}

// syscallInfo is the kernel's struct ptrace_syscall_info.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	_    uint32    // architecture
	_, _ uint64    // instruction and stack pointers
	nr   uint64    // the call's number at its entry, its result at its exit
	args [6]uint64 // at its entry
	_    [2]uint64
}

func (tr *tracer) atSyscall(tid int, current *step) error {
	var info syscallInfo
	_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO,
		uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	switch {
	case errno == syscall.ESRCH: // killed meanwhile
		return nil
	case errno != 0:
		return fmt.Errorf("PTRACE_GET_SYSCALL_INFO: %w", errno)
	case info.op == unix.PTRACE_SYSCALL_INFO_ENTRY:
		current = tr.outside(info)
		tr.inside[tid] = current
	case current != nil && int64(info.nr) < 0 && current.call != "connect":
		return nil // it failed, and changed nothing; a connect goes on by itself
	case current != nil:
		current = &step{current.call, current.object, true}
	}
	if current != nil {
		tr.steps = append(tr.steps, *current)
	}
	return nil
}

// Calls that change what a path names: their numbers, and which arguments are
// the path and the directory that it starts from.
var pathCalls = map[uint64]struct {
	name      string
	path, dir int
}{
	unix.SYS_OPENAT:    {"openat", 1, 0},
	unix.SYS_OPENAT2:   {"openat2", 1, 0},
	unix.SYS_MKDIRAT:   {"mkdirat", 1, 0},
	unix.SYS_UNLINKAT:  {"unlinkat", 1, 0},
	unix.SYS_SYMLINKAT: {"symlinkat", 2, 1},
	unix.SYS_LINKAT:    {"linkat", 3, 2},
	unix.SYS_RENAMEAT:  {"renameat", 3, 2},
	unix.SYS_RENAMEAT2: {"renameat2", 3, 2},
	unix.SYS_MKNODAT:   {"mknodat", 1, 0},
	unix.SYS_FCHMODAT:  {"fchmodat", 1, 0},
	unix.SYS_FCHOWNAT:  {"fchownat", 1, 0},
	unix.SYS_UTIMENSAT: {"utimensat", 1, 0},
}

// Calls that change what a file descriptor, their first argument, stands for.
var fdCalls = map[uint64]string{
	unix.SYS_WRITE:           "write",
	unix.SYS_WRITEV:          "writev",
	unix.SYS_PWRITE64:        "pwrite64",
	unix.SYS_PWRITEV:         "pwritev",
	unix.SYS_PWRITEV2:        "pwritev2",
	unix.SYS_SENDTO:          "sendto",
	unix.SYS_SENDMSG:         "sendmsg",
	unix.SYS_SENDMMSG:        "sendmmsg",
	unix.SYS_SENDFILE:        "sendfile",
	unix.SYS_SPLICE:          "splice",
	unix.SYS_COPY_FILE_RANGE: "copy_file_range",
	unix.SYS_CONNECT:         "connect",
	unix.SYS_SHUTDOWN:        "shutdown",
	unix.SYS_FTRUNCATE:       "ftruncate",
	unix.SYS_FALLOCATE:       "fallocate",
	unix.SYS_FSYNC:           "fsync",
	unix.SYS_FDATASYNC:       "fdatasync",
	unix.SYS_FLOCK:           "flock",
	unix.SYS_FCHMOD:          "fchmod",
	unix.SYS_FCHOWN:          "fchown",
}

// outside returns the step that a thread is about to make, or nil where its call
// changes nothing outside of the process.
func (tr *tracer) outside(info syscallInfo) *step {
	if c, ok := pathCalls[info.nr]; ok {
		const writing = unix.O_CREAT | unix.O_WRONLY | unix.O_RDWR | unix.O_TRUNC
		if info.nr == unix.SYS_OPENAT && info.args[2]&writing == 0 {
			return nil
		}
		path := tr.text(info.args[c.path], unix.PathMax)
		if !filepath.IsAbs(path) {
			path = filepath.Join(tr.fd(info.args[c.dir]), path)
		}
		return &step{call: c.name, object: tr.name(path)}
	}
	if name, ok := fdCalls[info.nr]; ok {
		file := tr.fd(info.args[0])
		switch {
		case strings.HasPrefix(file, "anon_inode:"): // wakes a thread of its own
			return nil
		case info.args[0] <= 2:
			file = [...]string{"stdin", "stdout", "stderr"}[info.args[0]]
		case strings.HasPrefix(file, "socket:"):
			file = tr.socket(info)
		}
		return &step{call: name, object: tr.name(file)}
	}
	return nil
}

// socket says what is being sent: TLS tells that in the clear.
func (tr *tracer) socket(info syscallInfo) string {
	const handshake, applicationData = 0x16, 0x17
	if info.nr != unix.SYS_WRITE {
		return "socket"
	}
	record := []byte{0}
	_, _ = tr.memory.ReadAt(record, int64(info.args[1]))
	switch record[0] {
	case handshake:
		return "socket: handshake"
	case applicationData:
		return "socket: data"
	}
	return "socket: other"
}

func (tr *tracer) fd(n uint64) string {
	file, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tr.pid, int32(n)))
	return file
}

// text reads a string of the process.
func (tr *tracer) text(at uint64, most int) string {
	buf := make([]byte, most)
	n, _ := tr.memory.ReadAt(buf, int64(at)) // less where the memory ends
	s, _, _ := bytes.Cut(buf[:n], []byte{0})
	return string(s)
}

// What differs from run to run in the name of a file.
var (
	home      = regexp.MustCompile(`^data/[a-z0-9-]+@[0-9a-f]{16}\b`) // of a namespace and a cluster
	temporary = regexp.MustCompile(`([.@])(tmp|rebuilding)[0-9-]+`)
	noteHash  = regexp.MustCompile(`@[0-9a-f]{8,}`)
	dirHash   = regexp.MustCompile(`/dirs/[0-9a-f]{40}`) // of a registered directory
	address   = regexp.MustCompile(`\b1[01]\.\d+\.\d+\.\d+`)
	poolName  = regexp.MustCompile(`\b([pq])\d+\b`)
)

// name is the file's, the same in each run.
func (tr *tracer) name(path string) string {
	path = strings.TrimPrefix(path, tr.dir+"/")
	path = home.ReplaceAllString(path, "hint")
	path = temporary.ReplaceAllString(path, "$1$2")
	path = noteHash.ReplaceAllString(path, "@HASH")
	path = dirHash.ReplaceAllString(path, "/dirs/HASH")
	path = address.ReplaceAllString(path, "ADDRESS")
	return poolName.ReplaceAllString(path, "$1")
}
