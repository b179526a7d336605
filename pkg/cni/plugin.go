// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cni is the CNI plugin. It turns what a runtime asks for into a call of
// pkg/claim, and the answer into a CNI result or a CNI error.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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
	// Version of the program, for the API server's audit log.
	Version string
}

// Funcs returns the functions that skel calls, one for each verb.
func (p Plugin) Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add:    func(args *skel.CmdArgs) error { return p.call("ADD", claim.AddTime, args, add) },
		Del:    p.del,
		Check:  func(args *skel.CmdArgs) error { return p.call("CHECK", claim.CheckTime, args, check) },
		GC:     func(args *skel.CmdArgs) error { return p.call("GC", claim.GCTime, args, gc) },
		Status: func(args *skel.CmdArgs) error { return p.call(verbStatus, claim.StatusTime, args, status) },
	}
}

// codeNotHeld is the plugin's own error code: CHECK found no allocation.
const codeNotHeld = 100

const verbStatus = "STATUS"

// invocation is one call of a verb, with what the verb needs.
type invocation struct {
	*network

	args    *skel.CmdArgs
	claimer *claim.Claimer
	started time.Time // when the call began; only GC uses it
}

// call answers every verb but DEL: it reads the configuration, opens the log, finds the
// node's credentials, runs the verb within its time, and turns an error into a CNI error.
func (p Plugin) call(name string, limit time.Duration, args *skel.CmdArgs, run func(context.Context, invocation) error) error {
	started := time.Now()
	n, err := parseNetwork(args.StdinData)
	if err != nil {
		return cniError(name, invalid(err))
	}
	log, closeLog := openLogFor(name, n, args)
	defer closeLog()
	err = within(limit+claim.CleanupTime, func() error {
		creds, c, err := p.connect(n, log)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		return creds.explain(run(ctx, invocation{network: n, args: args, claimer: c, started: started}))
	})
	if err != nil {
		log.Error("failed", "error", err)
		return cniError(name, err)
	}
	log.Debug("done")
	return nil
}

// add claims the addresses that an attachment needs, and prints the result.
func add(ctx context.Context, in invocation) error {
	c := in.claimer
	req, err := in.request(in.args)
	if err != nil {
		return invalid(err)
	}
	in.registerDataDir(c.Log)
	claims, err := c.Allocate(ctx, req)
	if errors.Is(err, claim.ErrPoolNotFound) {
		err = fmt.Errorf("%w%s", err, in.whichPool())
	}
	if err != nil {
		return err
	}
	if err := in.print(ctx, claims); err != nil { // the runtime does not learn the addresses
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), claim.CleanupTime)
		defer cancel()
		return errors.Join(err, c.Release(cleanup, req.Attachment))
	}
	for _, cl := range claims {
		c.Log.Info("claimed", "address", cl.Address, "pool", cl.Block.Pool.Name, "pod", req.Pod.Namespace+"/"+req.Pod.Name)
	}
	return nil
}

// print prints the result of an ADD. If the time is over it prints nothing, and the ADD fails.
func (in invocation) print(ctx context.Context, claims []claim.Claim) error {
	out, err := result(claims).GetAsVersion(in.CNIVersion)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = out.Print()
	}
	if err != nil {
		return fmt.Errorf("result as CNI version %s: %w", in.CNIVersion, err)
	}
	return nil
}

// del answers DEL. It succeeds if there is a container, an interface and a disk: whatever
// else is missing or broken, the release is noted and later calls carry it out.
func (p Plugin) del(args *skel.CmdArgs) error {
	n, problem := parseNetwork(args.StdinData)
	log, closeLog := openLogFor("DEL", n, args)
	defer closeLog()
	if len(args.ContainerID) > maxContainerID {
		return nil // an ADD with this container ID fails: there is nothing to release
	}
	if problem != nil {
		log.Warn("cannot use the configuration, releasing what this node knows about", "error", problem)
	}
	hints := hint.All(n.IPAM.DataDir, log)
	// No CleanupTime here: noting the release has it below.
	err := within(claim.DelTime, func() error { return p.releaseEverywhere(n, problem == nil, hints, attachment(args), log) })
	if err != nil {
		log.Warn("release is left to later calls", "error", err)
		err = within(claim.CleanupTime, func() error { return releaseLater(n, hints, attachment(args), err, log) })
	}
	if err != nil {
		log.Error("failed", "error", err)
		cniErr := cniError("DEL", err)
		if known := (*types.Error)(nil); errors.As(cniErr, &known) {
			// containerd treats a DEL error that contains these words as success.
			known.Msg = strings.ReplaceAll(known.Msg, "not found", "missing")
		}
		return cniErr
	}
	log.Debug("done")
	return nil
}

// releaseEverywhere releases what the attachment holds in the configured namespace, and what the
// hints of other namespaces have of it: the configuration may have been changed or cut
// down since the ADD. If the configuration could not be read, it asks the API server
// about each of those namespaces.
func (p Plugin) releaseEverywhere(n *network, readable bool, hints []*hint.Hint, att hint.Attachment, log *slog.Logger) error {
	creds, c, err := p.connect(n, log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), claim.DelTime)
	defer cancel()
	if knownByOtherSite(hints, c.Hint, att) {
		c.Hint.Forget()
	}
	errs := []error{creds.explain(c.Release(ctx, att))}
	for _, h := range hints {
		if h.Same(c.Hint) {
			continue
		}
		other := *c
		other.Ledger.Namespace, other.Hint = h.Namespace, h
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

// knownByOtherSite reports whether another hint of the namespace has claims of the
// attachment. Then own may lack them although it is complete: the other may be of the
// same cluster, known there by other certificate authorities. The installer, which adopts
// nv-ipam's addresses, has its authorities from the cluster and not from the kubelet.
func knownByOtherSite(hints []*hint.Hint, own *hint.Hint, att hint.Attachment) bool {
	return slices.ContainsFunc(hints, func(h *hint.Hint) bool {
		if h.Namespace != own.Namespace || h.Site == own.Site {
			return false
		}
		entries, _ := h.Holding(att)
		return len(entries) > 0
	})
}

// noteElsewhere notes a release in the hint of another cluster, or of another name of
// this node, if that hint has claims of the attachment, or may have.
func noteElsewhere(h *hint.Hint, att hint.Attachment, readable bool) error {
	if entries, _ := h.Holding(att); len(entries) == 0 && readable || claim.ReleaseLater(h, att) {
		return nil
	}
	return errors.New("cannot note a release in the hint of another cluster, or of another name of this node")
}

// releaseLater notes the release in every hint that may have claims of the attachment. If
// that fails, it returns the cause, why the release was not carried out.
func releaseLater(n *network, hints []*hint.Hint, att hint.Attachment, cause error, log *slog.Logger) error {
	noted, known := true, false
	for _, h := range hints {
		noted = claim.ReleaseLater(h, att) && noted
		known = known || h.Namespace == n.IPAM.PoolsNamespace
	}
	if !known {
		noted = hint.Open(n.IPAM.DataDir, hint.UnknownSite, n.IPAM.PoolsNamespace, log).ReleasingAttachment(att) && noted
	}
	if !noted {
		return cause
	}
	return nil
}

func check(ctx context.Context, in invocation) error {
	pools, err := in.pools()
	if err != nil {
		return invalid(err)
	}
	return in.claimer.Check(ctx, attachment(in.args), pools)
}

func gc(ctx context.Context, in invocation) error {
	if in.ValidAttachments == nil {
		in.claimer.Log.Warn("GC without cni.dev/valid-attachments: nothing is released")
		return nil
	}
	var valid []hint.Attachment
	for i, a := range *in.ValidAttachments {
		if a.ContainerID == "" || a.IfName == "" {
			// It names no attachment, and skipping it would release the one that it stands for.
			return invalid(fmt.Errorf("cni.dev/valid-attachments[%d] has no containerID or no ifname", i))
		}
		valid = append(valid, hint.Attachment{ContainerID: a.ContainerID, Interface: a.IfName})
	}
	return in.claimer.Collect(ctx, in.Name, valid, in.started)
}

func status(ctx context.Context, in invocation) error {
	pools, err := in.pools()
	if err != nil {
		return invalid(err)
	}
	return in.claimer.Ready(ctx, pools)
}

func openLogFor(verbName string, n *network, args *skel.CmdArgs) (*slog.Logger, func()) {
	log, closeLog := openLog(n.IPAM.LogFile, n.IPAM.LogLevel)
	return log.With("verb", verbName, "network", n.Name, "container", args.ContainerID, "interface", args.IfName), closeLog
}

// within runs f and returns its error, or, after limit, kills the programs that this process has
// started and returns ErrUnavailable. A context is not enough: a credential program or a read of
// the disk may hang and ignores it.
func within(limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		killChildren()
		return fmt.Errorf("%w: timed out after %s: an exec credential plugin named in the kubeconfig, or the disk, may be hanging", ledger.ErrUnavailable, limit)
	}
}

// killChildren kills the programs that this process has started and that still run. They
// have inherited its stderr, and the runtime waits until that is closed.
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

// connect finds the credentials of this node, and returns a Claimer that uses them.
func (p Plugin) connect(n *network, log *slog.Logger) (*credentials, *claim.Claimer, error) {
	creds, err := findCredentials(n.IPAM, "")
	if err != nil {
		return nil, nil, err
	}
	node, err := creds.nodeName(n.IPAM.NodeName, log)
	if err != nil {
		return nil, nil, invalid(err)
	}
	log.Debug("credentials", "kubeconfig", creds.file, "user", creds.user, "node", node)
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // the runtime reads stderr
	creds.config.UserAgent = "nv-ipam/" + p.Version
	client, err := newClient(creds.config)
	if err != nil {
		return nil, nil, credentialsError{fmt.Errorf("kubeconfig %s: %w", creds.file, err)}
	}
	site, err := ledger.SiteOf(creds.config, node)
	if err != nil {
		return nil, nil, credentialsError{fmt.Errorf("kubeconfig %s: %w", creds.file, err)}
	}
	return creds, &claim.Claimer{
		Ledger: ledger.Ledger{Client: client, Namespace: n.IPAM.PoolsNamespace, Node: node},
		Hint:   hint.Open(n.IPAM.DataDir, site, n.IPAM.PoolsNamespace, log),
		Log:    log, LossGrace: timeOf(n.IPAM.LossGrace), ReleaseCooldown: timeOf(n.IPAM.ReleaseCooldown),
	}, nil
}

// invalid marks an error in the configuration or in the request: repeating the call does
// not help.
func invalid(err error) error {
	return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
}

// cniError returns an error with its CNI code. An error that is not the caller's fault
// gets "try again later".
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
