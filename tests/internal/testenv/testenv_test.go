// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) {
	if os.Getenv("TESTENV_HANG") != "" {
		hang()
	}
	os.Exit(testenv.Run(m, &env, testenv.Options{Audit: true}))
}

func client(t *testing.T, config *rest.Config) versioned.Interface {
	t.Helper()
	c, err := versioned.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func allocation(pool, address string) *v1alpha1.IPAllocation {
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: pool + "." + address},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef:       v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: pool},
			Address:       address,
			NodeName:      "node1",
			ContainerID:   "c1",
			InterfaceName: "net1",
		},
	}
}

// The server's versions differ in what they accept in a CRD: this one shows that
// ours works on the one that runs.
func TestAllocation(t *testing.T) {
	allocs := client(t, env.Config).NvIpamV1alpha1().IPAllocations(env.Namespace(t))

	created, err := allocs.Create(t.Context(), allocation("pool1", "192.168.0.5"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := allocs.Get(t.Context(), "pool1.192.168.0.5", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(created.Spec, got.Spec); diff != "" {
		t.Error(diff)
	}
	if _, err := allocs.Create(t.Context(), allocation("pool1", "192.168.0.5"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("a second claim: got %v, want AlreadyExists", err)
	}

	misnamed := allocation("pool1", "192.168.0.6")
	misnamed.Name = "pool1.192.168.0.7"
	if _, err := allocs.Create(t.Context(), misnamed, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a name that is not the address's: got %v, want Invalid", err)
	}
	got.Spec.ContainerID = "c2"
	if _, err := allocs.Update(t.Context(), got, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("another attachment: got %v, want Invalid", err)
	}
}

func TestNodeIdentity(t *testing.T) {
	path, err := env.NodeKubeconfig("node1")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = client(t, config).NvIpamV1alpha1().IPAllocations(env.Namespace(t)).Get(t.Context(), "x", metav1.GetOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "system:node:node1") {
		t.Errorf("got %v, want Forbidden for system:node:node1", err)
	}
}

func TestRequests(t *testing.T) {
	config := rest.CopyConfig(env.Config)
	config.UserAgent = "counted/1"
	allocs := client(t, config).NvIpamV1alpha1().IPAllocations(env.Namespace(t))
	mark, err := env.Mark()
	if err != nil {
		t.Fatal(err)
	}

	_, _ = allocs.Get(t.Context(), "pool1.10.0.0.1", metav1.GetOptions{})
	_, _ = allocs.Create(t.Context(), allocation("pool1", "10.0.0.1"), metav1.CreateOptions{})

	all, err := env.Requests(mark)
	if err != nil {
		t.Fatal(err)
	}
	mine := all.By("counted/")
	if len(mine) != 2 || len(mine.Writes()) != 1 || len(mine.Of("create", "ipallocations")) != 1 {
		t.Errorf("want one get and one create, got:\n%s", mine)
	}
}

func TestRestart(t *testing.T) {
	allocs := client(t, env.Config).NvIpamV1alpha1().IPAllocations(env.Namespace(t))
	if _, err := allocs.Create(t.Context(), allocation("pool1", "10.0.0.1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	for _, stop := range []func() error{env.StopAPIServer, env.KillAPIServer, env.StopAPIServer} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := allocs.Get(t.Context(), "pool1.10.0.0.1", metav1.GetOptions{}); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("stopped: got %v, want a refused connection", err)
		}
		if err := env.StartAPIServer(); err != nil {
			t.Fatal(err)
		}
		if _, err := allocs.Get(t.Context(), "pool1.10.0.0.1", metav1.GetOptions{}); err != nil {
			t.Errorf("started again: %v", err)
		}
	}
}

func TestKubectl(t *testing.T) {
	out, err := env.Kubectl(t.Context(), "get", "ipa", "-A")
	if err != nil {
		t.Error(err, out)
	}
	if _, err := env.Kubectl(t.Context(), "get", "nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v, want kubectl's own words", err)
	}
}

func TestNeedsAssets(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", "")
	if _, err := testenv.Start(testenv.Options{}); err == nil || !strings.Contains(err.Error(), "make test") {
		t.Errorf("got %v, want advice", err)
	}
}

// hang starts a server and leaves Dir on stdout.
func hang() {
	e, err := testenv.Start(testenv.Options{NoCRDs: true})
	if err != nil {
		panic(err)
	}
	_, _ = os.Stdout.WriteString(e.Dir)
	_ = os.Stdout.Close()
	select {}
}

// Killed, a test leaves nothing behind either.
func TestKilled(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "TESTENV_HANG=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	dir := string(buf[:n])
	var pids []string
	for _, name := range []string{"etcd", "kube-apiserver"} {
		pid, err := os.ReadFile(filepath.Join(dir, name+".pid"))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, strings.TrimSpace(string(pid)))
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	gone := func() bool {
		for _, pid := range pids {
			if cmdline, _ := os.ReadFile("/proc/" + pid + "/cmdline"); len(cmdline) > 0 {
				return false
			}
		}
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !gone(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("processes %v or %s are still there", pids, dir)
		}
	}
}

// A server that is lent again has nothing of what was done to it.
func TestPool(t *testing.T) {
	servers := testenv.Pool{Options: testenv.Options{NoCRDs: true}}
	var first *testenv.Env
	role := func(t *testing.T, env *testenv.Env) string {
		t.Helper()
		out, err := env.Kubectl(t.Context(), "get", "clusterrole", "system:basic-user", "-o", "jsonpath={.rules}")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	var rules string
	t.Run("one", func(t *testing.T) {
		first = servers.Get(t)
		rules = role(t, first)
		ns := first.Namespace(t)
		for _, args := range [][]string{
			{"create", "configmap", "left", "-n", ns},
			{"create", "clusterrole", "left", "--verb=get", "--resource=pods"},
			{"patch", "clusterrole", "system:basic-user", "--type=json", `-p=[{"op": "remove", "path": "/rules/0"}]`},
			{"apply", "-f", "../../../manifests/base/crds/nv-ipam.nvidia.com_ippools.yaml"},
			{"wait", "--for=condition=Established", "--timeout=1m", "crd", "--all"},
			{"get", "ippools", "-A"},
		} {
			if _, err := first.Kubectl(t.Context(), args...); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("another", func(t *testing.T) {
		if env := servers.Get(t); env != first {
			t.Error("it is another server")
		}
		if got := role(t, first); got != rules {
			t.Errorf("role system:basic-user has %s", got)
		}
		for _, args := range [][]string{{"get", "configmaps", "-A"}, {"get", "namespaces"}, {"get", "clusterroles"}} {
			out, err := first.Kubectl(t.Context(), args...)
			if err != nil || strings.Contains(out, "left") || strings.Contains(out, "test-") {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
		if out, err := first.Kubectl(t.Context(), "get", "ippools", "-A"); err == nil {
			t.Errorf("pools are served: %s", out)
		}
	})
	if err := servers.Stop(); err != nil {
		t.Error(err)
	}
}
