// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// auditPolicy logs every request but the server's own and health checks: a
// discovery request that a client should not make counts, too.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: None
  users: ["system:apiserver"]
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*"]
- level: Metadata
`

func (e *Env) auditLog() string { return filepath.Join(e.Dir, "audit.log") }

func (e *Env) configureAudit(args *envtest.Arguments) error {
	policy := filepath.Join(e.Dir, "audit-policy.yaml")
	args.Set("audit-policy-file", policy).
		Set("audit-log-path", e.auditLog()).
		// Not rotated: marks are offsets.
		Set("audit-log-maxsize", "100000")
	return os.WriteFile(policy, []byte(auditPolicy), 0o600)
}

// Request is one completed request to the API server.
type Request struct {
	User, UserAgent string
	// Verb is the API's: get, list, create, delete and so on.
	Verb string
	// Resource is empty where the request is for none, as in discovery.
	Resource, Namespace, Name string
	URI                       string
	// Code is the HTTP status of the answer.
	Code int
}

func (r Request) String() string {
	return fmt.Sprintf("%s %s -> %d (%s)", r.Verb, r.URI, r.Code, r.UserAgent)
}

// Requests are completed requests in the order of their completion.
type Requests []Request

// Writes are those that ask for a change, whether it was accepted or not.
func (rs Requests) Writes() Requests {
	return rs.filter(func(r Request) bool {
		switch r.Verb {
		case "create", "update", "patch", "delete", "deletecollection":
			return true
		}
		return false
	})
}

// By are those whose user agent begins with the prefix, such as "nv-ipam/".
func (rs Requests) By(userAgentPrefix string) Requests {
	return rs.filter(func(r Request) bool { return strings.HasPrefix(r.UserAgent, userAgentPrefix) })
}

// Of are those with this verb for this resource ("ipallocations").
func (rs Requests) Of(verb, resource string) Requests {
	return rs.filter(func(r Request) bool { return r.Verb == verb && r.Resource == resource })
}

func (rs Requests) filter(keep func(Request) bool) Requests {
	var kept Requests
	for _, r := range rs {
		if keep(r) {
			kept = append(kept, r)
		}
	}
	return kept
}

// String has a line for each request, for a test's error message.
func (rs Requests) String() string {
	var b strings.Builder
	for _, r := range rs {
		fmt.Fprintln(&b, r)
	}
	return b.String()
}

// Mark is a moment in the audit log.
type Mark int64

// Mark returns the present moment.
func (e *Env) Mark() (Mark, error) {
	info, err := os.Stat(e.auditLog())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errors.New("no audit log: start the server with testenv.Options{Audit: true}")
	}
	if err != nil {
		return 0, err
	}
	return Mark(info.Size()), nil
}

// Requests returns what was asked since the mark and is answered. The server
// logs a request's arrival before it handles it, and its completion when the
// client may already have the answer: so this waits, for up to 5 s, until
// everything that has arrived is complete. Watches, which do not end, are left
// out.
func (e *Env) Requests(since Mark) (Requests, error) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		done, pending, err := e.readAudit(since)
		if err != nil || pending == 0 {
			return done, err
		}
		if time.Now().After(deadline) {
			return done, fmt.Errorf("%d requests are not complete after 5 s", pending)
		}
	}
}

// auditEvent has the fields of audit.k8s.io/v1 Event that are read here.
type auditEvent struct {
	AuditID, Stage, Verb, UserAgent, RequestURI string

	User           struct{ Username string }
	ObjectRef      struct{ Resource, Subresource, Namespace, Name string }
	ResponseStatus struct{ Code int }
}

func (e *Env) readAudit(since Mark) (done Requests, pending int, err error) {
	f, err := os.Open(e.auditLog())
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	if _, err := f.Seek(int64(since), io.SeekStart); err != nil {
		return nil, 0, err
	}
	open := map[string]bool{}
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadBytes('\n')
		if err != nil { // a half-written line is not there yet
			return done, len(open), ignoreEOF(err)
		}
		var ev auditEvent
		if err := json.Unmarshal(bytes.TrimSpace(line), &ev); err != nil {
			return nil, 0, err
		}
		switch {
		case ev.Verb == "watch":
		case ev.Stage == "RequestReceived":
			open[ev.AuditID] = true
		case open[ev.AuditID] && (ev.Stage == "ResponseComplete" || ev.Stage == "Panic"):
			delete(open, ev.AuditID)
			done = append(done, ev.request())
		}
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (ev *auditEvent) request() Request {
	r := Request{
		User: ev.User.Username, UserAgent: ev.UserAgent,
		Verb: ev.Verb, Resource: ev.ObjectRef.Resource,
		Namespace: ev.ObjectRef.Namespace, Name: ev.ObjectRef.Name,
		URI: ev.RequestURI, Code: ev.ResponseStatus.Code,
	}
	if sub := ev.ObjectRef.Subresource; sub != "" {
		r.Resource += "/" + sub
	}
	return r
}
