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
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
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
	// requestTime bounds one request, so that one that hangs leaves time to ask
	// again on another connection.
	requestTime = 5 * time.Second
)

// codeNotHeld is the plugin's own: CHECK found no allocation.
const codeNotHeld = 100

func (p Plugin) add(args *skel.CmdArgs) error {
	return p.call("ADD", args, addTime, func(ctx context.Context, n *network, c *claim.Claimer) error {
		req, err := n.request(args)
		if err != nil {
			return invalid(err)
		}
		claims, err := c.Allocate(ctx, req)
		if err != nil {
			return err
		}
		out, err := result(claims).GetAsVersion(n.CNIVersion)
		if err == nil {
			err = out.Print()
		}
		if err != nil { // nobody will learn of the addresses
			return errors.Join(fmt.Errorf("result as CNI version %s: %w", n.CNIVersion, err), c.Release(context.WithoutCancel(ctx), req.Attachment))
		}
		for _, cl := range claims {
			c.Log.Info("claimed", "address", cl.Address, "pool", cl.Block.Pool.Name, "pod", req.Pod.Namespace+"/"+req.Pod.Name)
		}
		return nil
	})
}

func (p Plugin) del(args *skel.CmdArgs) error {
	err := p.call("DEL", args, delTime, func(ctx context.Context, _ *network, c *claim.Claimer) error {
		return c.Release(ctx, attachment(args))
	})
	var cniErr *types.Error
	if errors.As(err, &cniErr) {
		// containerd takes a DEL error with these words for success.
		cniErr.Msg = strings.ReplaceAll(cniErr.Msg, "not found", "missing")
	}
	return err
}

func (p Plugin) check(args *skel.CmdArgs) error {
	return p.call("CHECK", args, checkTime, func(ctx context.Context, n *network, c *claim.Claimer) error {
		pools, err := n.pools()
		if err != nil {
			return invalid(err)
		}
		return c.Check(ctx, attachment(args), pools)
	})
}

func (p Plugin) gc(args *skel.CmdArgs) error {
	return p.call("GC", args, gcTime, func(ctx context.Context, n *network, c *claim.Claimer) error {
		if n.ValidAttachments == nil {
			c.Log.Warn("GC without cni.dev/valid-attachments: nothing is released")
			return nil
		}
		var valid []claim.Attachment
		for _, a := range *n.ValidAttachments {
			valid = append(valid, claim.Attachment{ContainerID: a.ContainerID, Interface: a.IfName})
		}
		return c.Collect(ctx, n.Name, valid)
	})
}

func (p Plugin) status(args *skel.CmdArgs) error {
	err := p.call("STATUS", args, statusTime, func(ctx context.Context, n *network, c *claim.Claimer) error {
		pools, err := n.pools()
		if err != nil {
			return invalid(err)
		}
		if err := c.Ready(ctx, pools); err != nil {
			return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
		}
		return nil
	})
	return err
}

// call prepares what every verb needs, runs it in the time it may take, and
// turns its error into a CNI error.
func (p Plugin) call(verb string, args *skel.CmdArgs, limit time.Duration, run func(context.Context, *network, *claim.Claimer) error) error {
	n, err := parseNetwork(args.StdinData)
	if err != nil {
		return cniError(invalid(err))
	}
	log, closeLog, err := openLog(n.IPAM.LogFile, n.IPAM.LogLevel)
	if err != nil {
		return cniError(invalid(err))
	}
	defer closeLog()
	log = log.With("verb", verb, "network", n.Name, "container", args.ContainerID, "interface", args.IfName)

	c, err := p.claimer(n, log)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		err = run(ctx, n, c)
	}
	if err != nil {
		log.Error("failed", "error", err)
		return cniError(err)
	}
	log.Debug("done")
	return nil
}

func (p Plugin) claimer(n *network, log *slog.Logger) (*claim.Claimer, error) {
	if n.IPAM.Kubeconfig == "" {
		return nil, invalid(errors.New("ipam.kubeconfig is not set: the plugin needs credentials to claim addresses with"))
	}
	config, err := clientcmd.BuildConfigFromFlags("", n.IPAM.Kubeconfig)
	if err != nil {
		return nil, invalid(fmt.Errorf("ipam.kubeconfig: %w", err))
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // stderr is no place for them
	config.UserAgent = "nv-ipam/" + p.Version
	config.QPS = -1 // a process makes two requests
	config.Timeout = requestTime
	client, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return nil, invalid(fmt.Errorf("ipam.kubeconfig: %w", err))
	}
	return &claim.Claimer{
		Client:    client,
		Namespace: n.IPAM.PoolsNamespace,
		Node:      n.IPAM.NodeName,
		Hint:      claim.NewHint(n.IPAM.DataDir),
		Log:       log,
	}, nil
}

// invalid marks an error of the configuration or of the request: the same call
// will fail again.
func invalid(err error) error {
	return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
}

// cniError gives an error its CNI code. What is not the caller's fault may be
// better later.
func cniError(err error) error {
	var known *types.Error
	var request *pool.RequestError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &request):
		return invalid(err)
	case errors.Is(err, claim.ErrNotHeld):
		return types.NewError(codeNotHeld, err.Error(), "")
	default:
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
}
