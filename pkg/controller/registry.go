// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/http"
	"runtime"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Registry has the metrics of the process, and is where the controller registers its own
// (Options.Metrics).
type Registry struct {
	*prometheus.Registry

	requests *prometheus.CounterVec
}

// NewRegistry returns the registry of a binary of that version.
func NewRegistry(version string) *Registry {
	r := &Registry{
		Registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricsPrefix + "api_requests_total",
			Help: `Requests to the API server, by method and HTTP status; code "error" had no answer.`,
		}, []string{"method", "code"}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: metricsPrefix + "build_info", Help: "1, with what this binary was built from.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
	r.MustRegister(r.requests, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// maxScrapes are answered at a time: each one counts all allocations.
const maxScrapes = 4

// Handler serves /metrics.
func (r *Registry) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	return mux
}

// Count makes a transport count its requests.
func (r *Registry) Count(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		code := "error"
		if err == nil {
			code = strconv.Itoa(resp.StatusCode)
		}
		r.requests.WithLabelValues(req.Method, code).Inc()
		return resp, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
