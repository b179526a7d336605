// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// lookTime is what one look may take. A node may have some hundred lost allocations.
const lookTime = 30 * time.Second

// keepRecord looks until ctx ends whether the API server still has what this node holds.
func (o *options) keepRecord(ctx context.Context, log *slog.Logger) {
	if o.install.Node == "" || o.recordInterval == 0 {
		return
	}
	for {
		if err := o.look(ctx, log); err != nil && ctx.Err() == nil {
			log.Warn("whether allocations of this node were lost is not known", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait.Jitter(o.recordInterval, 0.2)):
		}
	}
}

// look writes again what this node holds and the API server has lost. The plugin may know
// the cluster by other certificate authorities than this program, and then its hint is of
// another site. So look takes all hints of the namespace. One of a cluster that the node
// was in before does no lasting harm: its containers are gone, and the controller frees
// what is written for them.
func (o *options) look(ctx context.Context, log *slog.Logger) error {
	config, err := o.clientConfig()
	if err != nil {
		return err
	}
	client, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var errs []error
	for _, h := range hint.All(o.install.DataDir, log) {
		if h.Namespace != o.install.Namespace || h.Site == hint.UnknownSite {
			continue
		}
		c := &claim.Claimer{
			Ledger: ledger.Ledger{Client: client, Namespace: o.install.Namespace, Node: o.install.Node},
			Hint:   h, Log: log,
		}
		errs = append(errs, c.Look(ctx))
	}
	return errors.Join(errs...)
}
