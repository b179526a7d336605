// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseName is that of nv-ipam's controller: while one is replaced by the other,
// the two never write at the same time.
const leaseName = "dd1643cf.nvidia.com"

// errLeaseLost is returned by Lead when another replica may lead by now.
var errLeaseLost = errors.New("leader lease lost")

// Lead waits until this replica, known by its identity, holds the lease in
// namespace, and calls run. When ctx ends, it waits for run to return, and only
// then gives the lease back, so that the next leader finds nobody at work. If
// the lease is lost because the API server does not answer, run's context ends
// and Lead returns an error. Two leaders may overlap for a moment then; the
// preconditions of every write keep them apart.
func Lead(ctx context.Context, client kubernetes.Interface, namespace, identity string, run func(context.Context) error) error {
	// The lease is held on a context of its own, which ends after run.
	elect, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	leading := make(chan struct{})
	stopped := make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: leaseName},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration:   15 * time.Second,
		RenewDeadline:   10 * time.Second,
		RetryPeriod:     2 * time.Second,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(lease context.Context) {
				close(leading)
				both, cancel := context.WithCancel(lease)
				defer context.AfterFunc(ctx, cancel)()
				defer cancel()
				stopped <- run(both)
				release()
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	defer context.AfterFunc(ctx, func() {
		select {
		case <-leading: // run ends, and then releases
		default:
			release()
		}
	})()
	elector.Run(elect)
	select {
	case <-leading:
	default: // never led
		return nil
	}
	if err := <-stopped; err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errLeaseLost
	}
	return nil
}
