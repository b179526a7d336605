// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"go4.org/netipx"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

// answers are what the page asks for, as JSON.
type answers struct {
	record  *inspect.Copy
	cluster string
}

func (a *answers) register(mux *http.ServeMux) {
	mux.HandleFunc("/api/events", a.events)
	for path, answer := range map[string]func(*inspect.Snapshot, url.Values) (any, error){
		"/api/pools": func(s *inspect.Snapshot, _ url.Values) (any, error) { return s.Pools(), nil },
		"/api/leaks": func(s *inspect.Snapshot, _ url.Values) (any, error) { return s.Leaks(), nil },
		"/api/search": func(s *inspect.Snapshot, q url.Values) (any, error) {
			return s.Search(q.Get("q")), nil
		},
		"/api/map":     mapOf,
		"/api/holders": holders,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			answer, err := answer(a.record.Snapshot(), r.URL.Query())
			reply(w, answer, err)
		})
	}
}

// failure is an answer that says why there is none.
type failure struct {
	Error string `json:"error"`
	// Gone is true if there is no such pool.
	Gone bool `json:"gone,omitempty"`
}

func reply(w http.ResponseWriter, answer any, err error) {
	code := http.StatusOK
	if err != nil {
		code = http.StatusBadRequest
		gone := errors.As(err, new(*inspect.NoPoolError))
		if gone {
			code = http.StatusNotFound
		}
		answer = failure{err.Error(), gone}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer) // it fails if nobody reads it any more
}

func poolIn(q url.Values) inspect.PoolRef {
	return inspect.PoolRef{Namespace: q.Get("namespace"), Kind: v1alpha1.PoolKind(q.Get("kind")), Name: q.Get("name")}
}

// rangeIn reads from and to, which may both be absent.
func rangeIn(q url.Values) (r netipx.IPRange, err error) {
	if !q.Has("from") && !q.Has("to") {
		return r, nil
	}
	from, errFrom := netip.ParseAddr(q.Get("from"))
	to, errTo := netip.ParseAddr(q.Get("to"))
	if r = netipx.IPRangeFrom(from, to); errFrom != nil || errTo != nil || !r.IsValid() {
		return r, fmt.Errorf("from=%q to=%q is not a range of addresses", q.Get("from"), q.Get("to"))
	}
	return r, nil
}

func mapOf(s *inspect.Snapshot, q url.Values) (any, error) {
	if q.Has("at") {
		addr, err := netip.ParseAddr(q.Get("at"))
		if err != nil {
			return nil, fmt.Errorf("at=%q is not an address", q.Get("at"))
		}
		return s.MapAt(poolIn(q), addr)
	}
	r, err := rangeIn(q)
	if err != nil {
		return nil, err
	}
	return s.Map(poolIn(q), r)
}

func holders(s *inspect.Snapshot, q url.Values) (any, error) {
	r, err := rangeIn(q)
	if err != nil {
		return nil, err
	}
	if !r.IsValid() {
		return nil, errors.New("from and to are missing")
	}
	return s.Holders(poolIn(q), r)
}

// state is what the page is told of each change. What it shows of it, it asks for.
type state struct {
	Cluster string           `json:"cluster"`
	At      metav1.Time      `json:"at"`
	Summary inspect.Summary  `json:"summary"`
	Sources []inspect.Source `json:"sources"`
}

// alive is how often a stream says that it is there, so that a browser notices if it is not.
const alive = 15 * time.Second

// events streams the state: now, and at each change, as often as the record allows it.
func (a *answers) events(w http.ResponseWriter, r *http.Request) {
	stream := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Method == http.MethodHead {
		return
	}
	changes := make(chan *inspect.Snapshot)
	go func() {
		defer close(changes)
		for s := a.record.Snapshot(); ; {
			select {
			case changes <- s:
			case <-r.Context().Done():
				return
			}
			var err error
			if s, err = a.record.Next(r.Context(), s.Version); err != nil {
				return // the page is closed
			}
		}
	}()
	tick := time.NewTicker(alive)
	defer tick.Stop()
	for {
		text := ": alive\n\n"
		select {
		case s, open := <-changes:
			if !open {
				return
			}
			data, err := json.Marshal(state{a.cluster, s.At, s.Summary(), s.Sources})
			if err != nil {
				return
			}
			text = fmt.Sprintf("data: %s\n\n", data)
		case <-tick.C:
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return
		}
		if err := stream.Flush(); err != nil {
			return
		}
	}
}
