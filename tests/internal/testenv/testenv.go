// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package testenv runs a real etcd and kube-apiserver on loopback, with this
// project's CRDs installed, for integration tests and for the demo.
//
// A test package shares one server:
//
//	var env *testenv.Env
//
//	func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{})) }
//
//	func TestX(t *testing.T) { ns := env.Namespace(t); ... }
package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// NodesGroup is the group that every kubelet's certificate carries.
const NodesGroup = "system:nodes"

// Options of Start. The zero value is a server with the CRDs and no audit log.
type Options struct {
	// APIServerArgs are set on the API server, beside and instead of the
	// defaults; keys without the leading dashes.
	APIServerArgs map[string]string
	// Audit writes the audit log that Env.Requests reads.
	Audit bool
	// NoCRDs leaves the server without this project's CRDs.
	NoCRDs bool
	// Durable makes etcd flush every write to the disk, as it does in production,
	// and lets it grow to 8 GiB: for measurements.
	Durable bool
}

// Env is a running API server.
type Env struct {
	// Config is an administrator's, with client-side rate limits out of the way.
	Config *rest.Config
	// Kubeconfig is the path of an administrator's kubeconfig file, with the
	// certificates embedded.
	Kubeconfig string
	// Dir is for whatever belongs to this server. It is removed with it.
	Dir string
	// Minor is the server's minor version: 37 for 1.37.2.
	Minor int

	envtest *envtest.Environment
	users   sync.Mutex // held while one is added
	guard   *guard
	log     *os.File
}

// Start runs etcd and the API server and returns when the CRDs are served. The
// caller calls Stop; should the caller's process die first, both processes and
// all files go away nevertheless.
func Start(o Options) (*Env, error) {
	// controller-runtime complains on stderr when nobody has decided.
	log.SetLogger(logr.Discard())

	assets, err := assets()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "crd-ipam-")
	if err != nil {
		return nil, err
	}
	e := &Env{Dir: dir}
	if e.guard, err = newGuard(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := e.start(assets, o); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the API server of %s: %w%s", assets, err, e.lastLog()), e.Stop())
	}
	return e, nil
}

func (e *Env) start(assets string, o Options) (err error) {
	if e.log, err = os.Create(filepath.Join(e.Dir, "control-plane.log")); err != nil {
		return err
	}
	e.envtest = &envtest.Environment{
		UseExistingCluster:    new(bool), // whatever the environment says
		BinaryAssetsDirectory: assets,
		// A busy machine is no reason to fail.
		ControlPlaneStartTimeout: 90 * time.Second,
		ControlPlaneStopTimeout:  30 * time.Second,
		ErrorIfCRDPathMissing:    true,
	}
	if !o.NoCRDs {
		root, err := Root()
		if err != nil {
			return err
		}
		e.envtest.CRDDirectoryPaths = []string{filepath.Join(root, "manifests", "base", "crds")}
	}
	if err := e.configure(assets, o); err != nil {
		return err
	}
	if e.Config, err = e.envtest.Start(); err != nil {
		return err
	}
	// Certificates for webhooks, outside of Dir: nobody here has any.
	if err := e.envtest.WebhookInstallOptions.Cleanup(); err != nil {
		return err
	}
	e.Config.QPS = -1
	if e.Kubeconfig, err = e.UserKubeconfig("admin", "system:masters"); err != nil {
		return err
	}
	return e.readVersion()
}

// configure says how etcd and the API server are to run. Their directories are
// given, because envtest removes those that it made itself at every stop, and
// with them the certificates that clients have.
func (e *Env) configure(assets string, o Options) (err error) {
	etcd := &envtest.Etcd{}
	e.envtest.ControlPlane.Etcd = etcd
	etcd.Out, etcd.Err = e.log, e.log
	if o.Durable {
		etcd.Configure().Disable("unsafe-no-fsync").Set("quota-backend-bytes", "8589934592")
	}
	etcd.DataDir = filepath.Join(e.Dir, "etcd-data")
	if err := os.Mkdir(etcd.DataDir, 0o700); err != nil {
		return err
	}
	if etcd.Path, err = e.guard.wrap(filepath.Join(assets, "etcd")); err != nil {
		return err
	}

	api := e.envtest.ControlPlane.GetAPIServer()
	api.Out, api.Err = e.log, e.log
	api.CertDir = filepath.Join(e.Dir, "apiserver-certs")
	if err := os.Mkdir(api.CertDir, 0o700); err != nil {
		return err
	}
	if api.Path, err = e.guard.wrap(filepath.Join(assets, "kube-apiserver")); err != nil {
		return err
	}
	args := api.Configure().
		Set("endpoint-reconciler-type", "none").
		Set("authorization-mode", "Node,RBAC").
		Set("enable-admission-plugins", "NodeRestriction")
	if o.Audit {
		if err := e.configureAudit(args); err != nil {
			return err
		}
	}
	for k, v := range o.APIServerArgs {
		args.Set(k, v)
	}
	return nil
}

func (e *Env) readVersion() error {
	client, err := kubernetes.NewForConfig(e.Config)
	if err != nil {
		return err
	}
	v, err := client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	e.Minor, err = strconv.Atoi(v.Minor)
	return err
}

// lastLog is the end of the components' log, for an error that has no other
// explanation.
func (e *Env) lastLog() string {
	if e.log == nil {
		return ""
	}
	b, err := os.ReadFile(e.log.Name())
	if err != nil || len(b) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "\n" + strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// Stop ends both processes and removes Dir.
func (e *Env) Stop() error {
	var errs []error
	if e.envtest != nil {
		err := e.envtest.Stop()
		if err == nil { // otherwise the guard kills what is left
			err = errors.Join(e.guard.forget("kube-apiserver"), e.guard.forget("etcd"))
		}
		errs = append(errs, err)
	}
	if e.log != nil {
		errs = append(errs, e.log.Close())
	}
	return errors.Join(append(errs, e.guard.release(), os.RemoveAll(e.Dir))...)
}

// PID is the process ID of a component, "etcd" or "kube-apiserver".
func (e *Env) PID(name string) (pid int, err error) {
	data, err := os.ReadFile(filepath.Join(e.Dir, name+".pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// EtcdURL is where etcd answers, without authentication.
func (e *Env) EtcdURL() string { return e.envtest.ControlPlane.Etcd.URL.String() }

// StopAPIServer stops the API server alone: connections are refused until
// StartAPIServer. What it stores stays in etcd.
func (e *Env) StopAPIServer() error {
	if err := e.envtest.ControlPlane.APIServer.Stop(); err != nil {
		return err
	}
	return e.guard.forget("kube-apiserver")
}

// KillAPIServer is StopAPIServer with kill -9: no request is finished.
func (e *Env) KillAPIServer() error {
	if err := e.guard.kill("kube-apiserver"); err != nil {
		return err
	}
	return e.guard.forget("kube-apiserver")
}

// StartAPIServer starts the API server again, on the same port and with the same
// certificates, and returns when it is healthy.
func (e *Env) StartAPIServer() error {
	return e.envtest.ControlPlane.APIServer.Start()
}

// addUser signs one certificate at a time: envtest counts serial numbers without a lock.
func (e *Env) addUser(name string, groups []string, base *rest.Config) (*envtest.AuthenticatedUser, error) {
	e.users.Lock()
	defer e.users.Unlock()
	return e.envtest.AddUser(envtest.User{Name: name, Groups: groups}, base)
}

// UserConfig returns a client configuration with a new certificate for a user.
// Nobody has to know the user: what they may do is a matter of RBAC.
func (e *Env) UserConfig(name string, groups ...string) (*rest.Config, error) {
	user, err := e.addUser(name, groups, &rest.Config{QPS: -1})
	if err != nil {
		return nil, err
	}
	return user.Config(), nil
}

// UserKubeconfig writes a kubeconfig file with a new certificate for a user and
// returns its path.
func (e *Env) UserKubeconfig(name string, groups ...string) (string, error) {
	user, err := e.addUser(name, groups, nil)
	if err != nil {
		return "", err
	}
	data, err := user.KubeConfig()
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(e.Dir, strings.ReplaceAll(name, ":", "-")+"-*.kubeconfig")
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	return f.Name(), errors.Join(err, f.Close())
}

// NodeKubeconfig writes a kubeconfig file like the one of that node's kubelet.
func (e *Env) NodeKubeconfig(node string) (string, error) {
	return e.UserKubeconfig("system:node:"+node, NodesGroup)
}

// Kubectl runs the server's own kubectl as an administrator. The error holds
// what it wrote to stderr.
func (e *Env) Kubectl(ctx context.Context, args ...string) (string, error) {
	dir, err := assets()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "kubectl"), args...)
	// HOME: its discovery cache goes away with the server.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+e.Kubeconfig, "HOME="+e.Dir)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// Namespace creates a namespace for one test. It stays until the server ends:
// nobody here would finalize it.
func (e *Env) Namespace(tb testing.TB) string {
	tb.Helper()
	client, err := kubernetes.NewForConfig(e.Config)
	if err != nil {
		tb.Fatal(err)
	}
	ns, err := client.CoreV1().Namespaces().Create(tb.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return ns.Name
}

// Run runs a package's tests with one server, which it puts into *env, and
// returns the exit code: os.Exit(testenv.Run(...)) is all that TestMain does.
func Run(m *testing.M, env **Env, o Options) (code int) {
	e, err := Start(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	*env = e
	defer func() {
		if err := e.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	return m.Run()
}
