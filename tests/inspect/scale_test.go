// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/inspect"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var size = flag.Int("allocations", 20_000, "how many TestScale has")

// most is how much memory each command may need.
const most = 300 // MiB

// In a large namespace each command answers within 300 MiB, and so does the web page. How long
// that takes is logged: the machine may be busy.
func TestScale(t *testing.T) {
	total := *size
	if testing.Short() {
		total = 5_000
	}
	own, err := testenv.Start(testenv.Options{}) // to delete them takes longer than to stop it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	h := newHouseOn(t, own)
	rig.IPPool(t, h.IPAM, h.NS, "big", v1alpha1.IPPoolSpec{Subnet: "10.64.0.0/12", PerNodeBlockSize: 1 << 16}, "worker-1", "worker-2")
	pods := make([]v1alpha1.PodReference, total/200) // with 200 addresses each
	for i := range pods {
		pods[i] = h.pod(t, fmt.Sprint("pod-", i), "worker-1")
	}
	h.Claim(t, h.IPAM, rig.Allocation("big", "10.64.0.1", "worker-1", pods[0], "sandbox-0"))
	addr := netip.MustParseAddr("10.64.0.2")
	own.Copy(t, h.NS, "big.10.64.0.1", total-1, func(i int, metadata, spec map[string]any) {
		pod := pods[i%len(pods)]
		if i < 100 {
			pod = h.gone(fmt.Sprint("gone-", i))
		}
		container := "sandbox-" + pod.Name
		metadata["name"], metadata["uid"] = "big."+addr.String(), fmt.Sprintf("22222222-2a5c-4f0e-8a53-%012d", i)
		metadata["labels"].(map[string]any)[v1alpha1.LabelContainer] = v1alpha1.ContainerLabel(container)
		spec["address"], spec["containerID"], spec["interfaceName"], spec["podRef"] = addr.String(), container, fmt.Sprint("n", i), pod
		addr = addr.Next()
	})
	rig.Until(t, func() string { // in its memory
		list, err := h.IPAM.IPAllocations(h.NS).List(t.Context(), metav1.ListOptions{Limit: 1})
		if err != nil || list.RemainingItemCount == nil || *list.RemainingItemCount != int64(total-1) {
			return fmt.Sprintf("the API server has not seen the allocations: %v, %v", list.ListMeta, err)
		}
		return ""
	})
	for _, args := range []string{"show", "who 10.64.9.9", "who -n " + h.NS + " pod/pod-7", "free big", "leaks", "check", "release big.10.64.1.1"} {
		if !strings.Contains(args, "-n") {
			args += " -n " + h.NS
		}
		cmd := exec.CommandContext(t.Context(), rig.Binary(t, "kubectl-ipam"), strings.Fields(args)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+own.Kubeconfig, "HOME="+own.Dir)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		start := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		peak := make(chan int)
		go func() {
			mib := 0
			for tick := time.Tick(10 * time.Millisecond); ; {
				select {
				case <-tick:
					mib = max(mib, memory(cmd.Process.Pid))
				case <-ended:
					peak <- mib
					return
				}
			}
		}()
		_ = cmd.Wait() // findings
		close(ended)
		mib := <-peak
		took := time.Since(start)
		t.Logf("%-40s %6d ms, %6d ms CPU, %4d MiB, exit code %d, %d bytes", args, took.Milliseconds(), (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Milliseconds(), mib, cmd.ProcessState.ExitCode(), out.Len())
		if mib > most || cmd.ProcessState.ExitCode() > 1 {
			t.Errorf("%s: %d MiB, %s: %.400s", args, mib, took, out.String())
		}
	}
	web(t, own, h.NS, total)
}

// memory returns how many MiB a process has had at most, 0 if it runs no longer. What the
// kernel says after it has ended includes the memory of what started it.
func memory(pid int) (mib int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if _, peak, found := strings.Cut(string(status), "VmHWM:"); found {
		kib := 0
		_, _ = fmt.Sscan(peak, &kib)
		mib = kib >> 10
	}
	return mib
}

// web asks for what the page shows when it is opened, and for a search.
func web(t *testing.T, own *testenv.Env, namespace string, total int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), rig.Binary(t, "kubectl-ipam"), "web", "-n", namespace)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+own.Kubeconfig, "HOME="+own.Dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	page, err := url.Parse(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar}
	get := func(path string) *http.Response {
		t.Helper()
		resp, err := client.Get(page.Scheme + "://" + page.Host + path)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", path, resp.Status)
		}
		return resp
	}
	_ = get("/?" + page.RawQuery).Body.Close() // lets in
	events := get("/api/events")
	for lines := bufio.NewScanner(events.Body); ; {
		if !lines.Scan() {
			t.Fatal("the stream has ended: ", lines.Err())
		}
		var state struct{ Summary inspect.Summary }
		data, found := strings.CutPrefix(lines.Text(), "data: ")
		if !found {
			continue
		}
		if err := json.Unmarshal([]byte(data), &state); err != nil {
			t.Fatal(err)
		}
		if state.Summary.Leaks != nil && state.Summary.Allocations == total {
			break
		}
	}
	t.Logf("%-40s %6d ms until all is read", "web", time.Since(start).Milliseconds())
	pool := url.Values{"namespace": {namespace}, "kind": {string(v1alpha1.PoolKindIPPool)}, "name": {"big"}}
	for _, path := range []string{"/api/pools", "/api/leaks", "/api/map?" + pool.Encode(), "/api/search?q=pod-7", "/api/search?q=10.64.9.9"} {
		start := time.Now()
		resp := get(path)
		n, err := io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%-40s %6d ms, %d bytes", path, time.Since(start).Milliseconds(), n)
	}
	_ = events.Body.Close()
	mib := memory(cmd.Process.Pid)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	used := cmd.ProcessState
	t.Logf("%-40s %6d ms CPU, %4d MiB", "web", (used.UserTime() + used.SystemTime()).Milliseconds(), mib)
	if mib > most {
		t.Errorf("web: %d MiB", mib)
	}
}
