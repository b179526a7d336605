// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cni is the CNI plugin: what a runtime asks for becomes a call of
// pkg/claim, and what comes back becomes a CNI result or a CNI error.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Plugin answers the CNI verbs.
type Plugin struct {
	// Version of the program, for the log and for the API server's audit log.
	Version string
}

// Funcs returns the verbs for skel.
func (p Plugin) Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status}
}

// What each verb may take: well below the four minutes after which a kubelet
// gives up on a sandbox, and short for a DEL, which can be owed.
const (
	addTime    = 20 * time.Second
	delTime    = 10 * time.Second
	checkTime  = 10 * time.Second
	gcTime     = 60 * time.Second
	statusTime = 5 * time.Second
	// undoTime is what may be added to that, to give back what a failed ADD has
	// claimed.
	undoTime = 6 * time.Second
)

// codeNotHeld is the plugin's own: CHECK found no allocation.
const codeNotHeld = 100

const verbStatus = "STATUS"

func (p Plugin) add(args *skel.CmdArgs) error {
	return p.call(verb{name: "ADD", limit: addTime}, args, func(ctx context.Context, n *network, c *claim.Claimer) error {
		req, err := n.request(args)
		if err != nil {
			return invalid(err)
		}
		n.registerDataDir(c.Log)
		claims, err := c.Allocate(ctx, req)
		if errors.Is(err, claim.ErrPoolNotFound) {
			err = fmt.Errorf("%w%s", err, n.whichPool())
		}
		if err != nil {
			return err
		}
		out, err := result(claims).GetAsVersion(n.CNIVersion)
		if err == nil {
			err = ctx.Err() // after its time nobody waits for it
		}
		if err == nil {
			err = out.Print()
		}
		if err != nil { // nobody will learn of the addresses
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			return errors.Join(fmt.Errorf("result as CNI version %s: %w", n.CNIVersion, err), c.Release(late, req.Attachment))
		}
		for _, cl := range claims {
			c.Log.Info("claimed", "address", cl.Address, "pool", cl.Block.Pool.Name, "pod", req.Pod.Namespace+"/"+req.Pod.Name)
		}
		return nil
	})
}

// del ends with success if there is a container, an interface and a disk: whatever
// else is missing or broken, the release is noted for later calls.
func (p Plugin) del(args *skel.CmdArgs) error {
	n, problem := parseNetwork(args.StdinData)
	log, closeLog := openLogFor("DEL", n, args)
	defer closeLog()
	if len(args.ContainerID) > maxContainerID {
		return nil // no allocation can name it, and no note either
	}
	if problem != nil {
		log.Warn("configuration is not usable, releasing what this node knows of", "error", problem)
	}
	hints := hint.All(n.IPAM.DataDir, log)
	err := within(delTime, func() error { return p.release(n, problem == nil, hints, attachment(args), log) })
	if err != nil {
		log.Warn("release is left to later calls", "error", err)
		err = within(undoTime, func() error { return releaseLater(n, hints, attachment(args), err, log) })
	}
	if err != nil {
		log.Error("failed", "error", err)
		cniErr := cniError("DEL", err)
		if known := (*types.Error)(nil); errors.As(cniErr, &known) {
			// containerd takes a DEL error with these words for success.
			known.Msg = strings.ReplaceAll(known.Msg, "not found", "missing")
		}
		return cniErr
	}
	log.Debug("done")
	return nil
}

// release releases what the attachment holds in the configured namespace, and what
// the hints of other namespaces know of it: the configuration may have been changed or
// cut down since the ADD. If it could not be read, each of them may have something.
func (p Plugin) release(n *network, readable bool, hints []*hint.Hint, att hint.Attachment, log *slog.Logger) error {
	creds, c, err := p.connect(n, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), delTime)
	defer cancel()
	errs := []error{creds.explain(c.Release(ctx, att))}
	for _, h := range hints {
		if h.Same(c.Hint) {
			continue
		}
		other := *c
		other.Namespace, other.Hint = h.Namespace, h
		switch {
		case h.Site != c.Hint.Site:
			errs = append(errs, noteElsewhere(h, att, readable))
		case readable:
			errs = append(errs, other.ReleaseKnown(ctx, att))
		default:
			errs = append(errs, other.Release(ctx, att))
		}
	}
	return errors.Join(errs...)
}

// noteElsewhere notes a release in the hint of another cluster, or of another name of
// this node, if that has something of the attachment or may have.
func noteElsewhere(h *hint.Hint, att hint.Attachment, readable bool) error {
	if entries, _ := h.Holding(att); len(entries) == 0 && readable || claim.ReleaseLater(h, att) {
		return nil
	}
	return errors.New("the release of what another cluster's hint, or that of another name of this node, has cannot be noted")
}

// releaseLater notes the release in every hint that may have something of the
// attachment. It returns why if that cannot be noted.
func releaseLater(n *network, hints []*hint.Hint, att hint.Attachment, why error, log *slog.Logger) error {
	noted, known := true, false
	for _, h := range hints {
		noted = claim.ReleaseLater(h, att) && noted
		known = known || h.Namespace == n.IPAM.PoolsNamespace
	}
	if !known {
		noted = hint.Open(n.IPAM.DataDir, hint.UnknownSite, n.IPAM.PoolsNamespace, log).ReleasingAll(att) && noted
	}
	if !noted {
		return why
	}
	return nil
}

func (p Plugin) check(args *skel.CmdArgs) error {
	return p.call(verb{name: "CHECK", limit: checkTime}, args, func(ctx context.Context, n *network, c *claim.Claimer) error {
		pools, err := n.pools()
		if err != nil {
			return invalid(err)
		}
		return c.Check(ctx, attachment(args), pools)
	})
}

func (p Plugin) gc(args *skel.CmdArgs) error {
	started := time.Now()
	return p.call(verb{name: "GC", limit: gcTime}, args, func(ctx context.Context, n *network, c *claim.Claimer) error {
		if n.ValidAttachments == nil {
			c.Log.Warn("GC without cni.dev/valid-attachments: nothing is released")
			return nil
		}
		var valid []hint.Attachment
		for _, a := range *n.ValidAttachments {
			valid = append(valid, hint.Attachment{ContainerID: a.ContainerID, Interface: a.IfName})
		}
		return c.Collect(ctx, n.Name, valid, started)
	})
}

func (p Plugin) status(args *skel.CmdArgs) error {
	return p.call(verb{name: verbStatus, limit: statusTime}, args, func(ctx context.Context, n *network, c *claim.Claimer) error {
		pools, err := n.pools()
		if err != nil {
			return invalid(err)
		}
		return c.Ready(ctx, pools)
	})
}

// verb is what differs from verb to verb.
type verb struct {
	name  string
	limit time.Duration
}

type runFunc func(context.Context, *network, *claim.Claimer) error

// call prepares what every verb but DEL needs, runs it in the time it may take, and
// turns its error into a CNI error.
func (p Plugin) call(v verb, args *skel.CmdArgs, run runFunc) error {
	n, err := parseNetwork(args.StdinData)
	if err != nil {
		return cniError(v.name, invalid(err))
	}
	log, closeLog := openLogFor(v.name, n, args)
	defer closeLog()
	err = within(v.limit+undoTime, func() error { return p.runAs(v, n, log, run) })
	if err != nil {
		log.Error("failed", "error", err)
		return cniError(v.name, err)
	}
	log.Debug("done")
	return nil
}

func openLogFor(verbName string, n *network, args *skel.CmdArgs) (*slog.Logger, func()) {
	log, closeLog := openLog(n.IPAM.LogFile, n.IPAM.LogLevel)
	return log.With("verb", verbName, "network", n.Name, "container", args.ContainerID, "interface", args.IfName), closeLog
}

// within ends a call that does not end by itself: not everything that can hang
// knows of a context.
func within(limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		killChildren()
		return fmt.Errorf("%w: no end after %s: a credential program that the kubeconfig names may hang, or the disk", ledger.ErrUnavailable, limit)
	}
}

// killChildren kills the programs that this process has started and that have not
// ended. They have its stderr, for whose end the runtime waits.
func killChildren() {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		pids, _ := os.ReadFile(list)
		for _, text := range strings.Fields(string(pids)) {
			if pid, err := strconv.Atoi(text); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// runAs runs a verb with this node's credentials.
func (p Plugin) runAs(v verb, n *network, log *slog.Logger, run runFunc) error {
	creds, c, err := p.connect(n, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), v.limit)
	defer cancel()
	return creds.explain(run(ctx, n, c))
}

func (p Plugin) connect(n *network, log *slog.Logger) (*credentials, *claim.Claimer, error) {
	creds, err := findCredentials(n.IPAM, "")
	if err != nil {
		return nil, nil, err
	}
	c, err := p.claimer(n, creds, log)
	return creds, c, err
}

func (p Plugin) claimer(n *network, creds *credentials, log *slog.Logger) (*claim.Claimer, error) {
	node, err := creds.nodeName(n.IPAM.NodeName, log)
	if err != nil {
		return nil, invalid(err)
	}
	log.Debug("credentials", "kubeconfig", creds.file, "user", creds.user, "node", node)
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // stderr is no place for them
	config := creds.config
	config.UserAgent = "nv-ipam/" + p.Version
	client, err := newClient(config)
	if err != nil {
		return nil, credentialsError{fmt.Errorf("kubeconfig %s: %w", creds.file, err)}
	}
	site, err := ledger.SiteOf(creds.config, node)
	if err != nil {
		return nil, credentialsError{fmt.Errorf("kubeconfig %s: %w", creds.file, err)}
	}
	return &claim.Claimer{
		Ledger: ledger.Ledger{Client: client, Namespace: n.IPAM.PoolsNamespace, Node: node},
		Hint:   hint.Open(n.IPAM.DataDir, site, n.IPAM.PoolsNamespace, log),
		Log:    log,
	}, nil
}

// invalid marks an error of the configuration or of the request: the same call
// will fail again.
func invalid(err error) error {
	return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
}

// cniError gives an error its CNI code. What is not the caller's fault may be
// better later.
func cniError(verbName string, err error) error {
	var known *types.Error
	var request *pool.RequestError
	var noCredentials credentialsError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &request):
		return invalid(err)
	case verbName == verbStatus:
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	case errors.As(err, &noCredentials):
		return invalid(err)
	case errors.Is(err, claim.ErrNotHeld):
		return types.NewError(codeNotHeld, err.Error(), "")
	default:
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
}
