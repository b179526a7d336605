// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// Installer keeps one host as it should be.
type Installer struct {
	Host *Host
	// Credentials are nil if the plugin uses the kubelet's.
	Credentials *Credentials
	// Around calls install, with whatever has to be done before and after it.
	Around func(ctx context.Context, install func(context.Context) error) error
	// Beside, if it is set, runs beside Keep, once the host is set up, until its ctx ends.
	Beside func(ctx context.Context)
	// Serve answers the kubelet's probes until stop is called.
	Serve func(probes http.Handler) (stop func(), err error)
	// Interval between two checks that the installed files are unchanged.
	Interval time.Duration
	Log      *slog.Logger

	// reason says why pods cannot get addresses on this node; it is empty if they can,
	// and nil at the start.
	reason atomic.Pointer[string]
	// asked is when the plugin's STATUS was good last.
	asked time.Time
}

// SetUp makes the host as it should be.
func (i *Installer) SetUp(ctx context.Context) error {
	if err := i.Host.takeOver(); err != nil {
		return err
	}
	if i.Credentials != nil { // the plugin will need them
		if _, err := i.Credentials.ensure(ctx); err != nil && !i.Credentials.good(time.Now()) {
			return err
		}
	}
	if err := i.Around(ctx, i.Host.install); err != nil {
		return err
	}
	i.Log.Info("installed", "binary", i.Host.Binary(), "conf", i.Host.Confs()[0])
	return nil
}

// Keep sets the host up, and keeps things as they were installed until ctx ends.
func (i *Installer) Keep(ctx context.Context) error {
	stop, err := i.serveProbes()
	if err != nil {
		return err
	}
	defer stop()
	if err := i.untilSetUp(ctx); err != nil {
		return nil // told to stop
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	if i.Beside != nil {
		beside.Go(func() { i.Beside(ctx) })
	}
	if i.Credentials != nil {
		beside.Go(func() { i.Credentials.run(ctx) })
	}
	for {
		i.askPlugin(ctx)
		pause := i.Interval
		if i.why() != "" {
			pause = min(pause, statusRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.Jitter(pause, 0.2)):
		}
		drift, err := i.drift()
		if err == nil && len(drift) == 0 {
			continue
		}
		i.Log.Warn("what was installed is not as it was: repairing", "drift", drift, "error", err)
		i.notReady(fmt.Sprintf("what was installed is being repaired: %s", strings.Join(drift, "; ")))
		if err := i.untilSetUp(ctx); err != nil {
			return nil
		}
	}
}

const (
	// StatusInterval is how often the plugin is asked whether all is well, if it was:
	// one read of the API server by each node.
	StatusInterval = 5 * time.Minute
	statusRetry    = 10 * time.Second
)

// askPlugin asks the plugin for its STATUS: only that says whether pods get addresses.
func (i *Installer) askPlugin(ctx context.Context) {
	if i.Host.Root == "" {
		i.ready()
		return
	}
	if time.Since(i.asked) < StatusInterval {
		return
	}
	if err := i.Host.status(ctx); err != nil {
		i.notReady(err.Error())
		return
	}
	i.asked = time.Now()
	i.ready()
}

func (i *Installer) ready() {
	if before := i.reason.Swap(new(string)); before == nil || *before != "" {
		i.Log.Info("ready")
	}
}

// why returns the reason why pods cannot get addresses here.
func (i *Installer) why() string {
	if reason := i.reason.Load(); reason != nil {
		return *reason
	}
	return "not finished yet"
}

// notReady notes why, for the probe, and says it once in the log.
func (i *Installer) notReady(reason string) {
	i.asked = time.Time{}
	if before := i.reason.Swap(&reason); before == nil || *before != reason {
		i.Log.Warn("not ready", "reason", reason)
	}
}

// drift says what is not as it was installed, without a request.
func (i *Installer) drift() ([]string, error) {
	drift, err := i.Host.drift()
	if i.Credentials == nil || err != nil {
		return drift, err
	}
	more, err := i.Credentials.drift()
	return append(drift, more...), err
}

func (i *Installer) untilSetUp(ctx context.Context) error {
	return i.until(ctx, "not installed", func() error { return i.SetUp(ctx) })
}

// until tries again until it succeeds or ctx ends. what says what is so until then.
func (i *Installer) until(ctx context.Context, what string, f func() error) error {
	backoff := wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.5, Steps: 10, Cap: time.Minute}
	for {
		err := f()
		if err == nil {
			return nil
		}
		pause := backoff.Step()
		i.Log.Error(what, "error", err, "retryAfter", pause)
		i.notReady(what + ": " + err.Error())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// serveProbes answers the kubelet until stop is called.
func (i *Installer) serveProbes() (stop func(), err error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		reason := i.why()
		switch {
		case reason != "":
			http.Error(w, reason, http.StatusServiceUnavailable)
		case i.Credentials != nil && !i.Credentials.good(time.Now()):
			http.Error(w, "the plugin's token has expired", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	return i.Serve(mux)
}

// Stay tries to do something until that succeeds, and is ready from then on until ctx ends.
// what says what is so until then.
func (i *Installer) Stay(ctx context.Context, what string, f func() error) error {
	stop, err := i.serveProbes()
	if err != nil {
		return err
	}
	defer stop()
	if err := i.until(ctx, what, f); err == nil {
		i.ready()
	}
	<-ctx.Done()
	return nil
}

// Remove takes away what was installed; the plugin's data stays.
func (i *Installer) Remove() error {
	takenOver := i.Host.takeOver()
	left, err := i.Host.uninstall()
	err = errors.Join(takenOver, err)
	for _, path := range left {
		i.Log.Warn("not removed: somebody has changed it since it was installed", "path", path)
	}
	if err == nil {
		i.Log.Info("uninstalled; what the plugin knows of pods' addresses stays", "dir", i.Host.DataDir)
	}
	return err
}
