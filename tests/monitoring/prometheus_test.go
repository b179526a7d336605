// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// target are the labels that a scrape by a ServiceMonitor adds.
var target = map[string]string{
	"namespace": "kube-system", "pod": "nv-ipam-controller-0", "container": "nv-ipam-controller",
	"service": "nv-ipam-controller-metrics", "endpoint": "metrics", "job": "nv-ipam-controller-metrics",
}

// A real Prometheus scrapes the real controller. All that rules and dashboard ask for
// exists, the alerts are those that the cluster calls for, and no panel is empty.
func TestPrometheus(t *testing.T) {
	c := rig.NewCluster(t, env)
	c.RemoveNodes(t)
	populate(t, c)
	controller := start(t, "ipam-controller", rig.Binary(t, "ipam-controller"), func(address string) []string {
		return []string{"--kubeconfig=" + env.Kubeconfig, "--ippools-namespace=" + c.NS, "--leader-elect=true", "--leader-elect-namespace=" + c.NS,
			"--health-probe-bind-address=0", "--metrics-bind-address=" + address}
	})
	rules, alerts := rulesFile(t)
	p := startPrometheus(t, rules, controller)

	p.await(t, "crd_ipam_pool_blocks_full == 1", "crd_ipam_leader == 1", `crd_ipam_pool_top_node_used`, `crd_ipam_held{reason="pod_unknown"} == 1`,
		"crd_ipam_allocations_without_pool == 1", "rate(process_cpu_seconds_total[1m])", `crd_ipam_failed_adds_total{pool="", reason="exhausted"} == 0`)
	fail(t, c, 1)
	p.await(t, `crd_ipam_failed_adds_total{pool="small", reason="exhausted"} == 1`)
	fail(t, c, 2)
	series := p.await(t, `increase(crd_ipam_failed_adds_total{pool="small"}[1m]) > 0`)
	documentedLabels(t, series)

	for _, a := range alerts {
		p.check(t, a.Alert, a.Expr, series)
	}
	for _, panel := range panels(t) {
		for _, q := range panel.Targets {
			expr := variables.Replace(q.Expr)
			p.check(t, panel.Title, expr, series)
			answer := p.query(t, expr)
			if len(answer) == 0 {
				t.Errorf("%s: no result of %s", panel.Title, expr)
				continue
			}
			for _, m := range regexp.MustCompile(`{{([a-z]+)}}`).FindAllStringSubmatch(q.LegendFormat, -1) {
				if answer[0][m[1]] == "" {
					t.Errorf("%s: the legend is %s, and %s has the labels %v", panel.Title, q.LegendFormat, expr, answer[0])
				}
			}
		}
	}
	p.wantAlerts(t, map[string]string{
		"IPAMPoolsOverlap {small}": "firing", // at once
		"IPAMBlockFull {small}":    "pending", "IPAMAddsFail {small}": "pending", "IPAMNodeWithoutBlock {small}": "pending", "IPAMPoolNotReady {wrong}": "pending", "IPAMPoolNearlyFull {small}": "pending",
		"IPAMAddressesOutsideBlocks {small}": "pending", "IPAMPoolGone {}": "pending", "IPAMLeaksHeld {}": "pending", "IPAMPoolSelectsNoNode {nowhere}": "pending",
	}, alerts)
}

// populate makes what the alerts are about: every metric has a series then.
func populate(t *testing.T, c *rig.Cluster) {
	t.Helper()
	for _, n := range []string{"node-a", "node-b", "node-c"} {
		c.Node(t, n, nil)
	}
	// Room for two of three nodes, and one address for each beside the gateway.
	c.Pool(t, "small", v1alpha1.IPPoolSpec{Subnet: "192.168.9.0/30", PerNodeBlockSize: 1})
	c.Pool(t, "wrong", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, Gateway: "10.0.1.1"})
	c.Pool(t, "shared", v1alpha1.IPPoolSpec{Subnet: "10.20.0.0/24"})
	nowhere := v1alpha1.IPPoolSpec{Subnet: "10.21.0.0/24", PerNodeBlockSize: 10}
	nowhere.NodeSelector = selector("nobody-has-this")
	c.Pool(t, "nowhere", nowhere)
	c.Pool(t, "over", v1alpha1.IPPoolSpec{Subnet: "192.168.8.0/23", PerNodeBlockSize: 16})
	hold := func(pool, address, node string, pod v1alpha1.PodReference) {
		t.Helper()
		a := rig.Allocation(pool, address, node, pod, "c-"+address)
		a.Spec.Domain = pool
		if _, err := c.IPAM.IPAllocations(c.NS).Create(t.Context(), a, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	live := rig.Pod(t, c.Kube, c.NS, "live", "node-a")
	hold("small", "192.168.9.1", "node-a", live)
	hold("small", "192.168.9.3", "node-a", live) // nobody's block
	hold("small", "192.168.9.4", "node-a", live) // not in the subnet
	hold("shared", "10.20.0.9", "node-a", live)
	hold("deleted", "10.9.9.9", "node-a", live)
	hold("shared", "10.20.0.10", "node-a", v1alpha1.PodReference{Namespace: c.NS, Name: "unknown", UID: rig.StaticUID})
}

// fail is the kubelet's event of a pod that gets no address in pool small.
func fail(t *testing.T, c *rig.Cluster, times int32) {
	t.Helper()
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: "live.1", Namespace: c.NS},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: c.NS, Name: "live"},
		Reason:         "FailedCreatePodSandBox", Count: times, Type: corev1.EventTypeWarning,
		Message: `Failed to create pod sandbox: no free addresses in the pool "small", poolType "ippool": block 192.168.9.1-192.168.9.1 of node node-a is full`,
	}
	events, err := c.Kube.CoreV1().Events(c.NS), error(nil)
	if times == 1 {
		_, err = events.Create(t.Context(), e, metav1.CreateOptions{})
	} else {
		_, err = events.Update(t.Context(), e, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// start starts a program that listens on an address until the end of the test.
func start(t *testing.T, name, binary string, args func(address string) []string) (address string) {
	t.Helper()
	address = rig.FreePort(t)
	out := &rig.Log{}
	cmd := exec.Command(binary, args(address)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // Wait says what became of it
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	})
	return address
}

// prometheus is a running one.
type prometheus struct{ url string }

func startPrometheus(t *testing.T, rules, controller string) prometheus {
	t.Helper()
	binary := filepath.Join(rig.Part(t, "PROMETHEUS", "prometheus"), "prometheus")
	config, err := json.Marshal(map[string]any{ // JSON is YAML, too
		"global":         map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files":     []string{rules},
		"scrape_configs": []any{map[string]any{"job_name": target["job"], "static_configs": []any{map[string]any{"targets": []string{controller}, "labels": target}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	address := start(t, "prometheus", binary, func(address string) []string {
		return []string{"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + address, "--log.level=warn"}
	})
	return prometheus{url: "http://" + address}
}

// get decodes what the API answers.
func (p prometheus) get(path string, query url.Values, into any) error {
	resp, err := http.Get(p.url + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: into}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", resp.Status, answer.Error)
	}
	return nil
}

// evaluate returns the labels of each series of the result.
func (p prometheus) evaluate(expr string) (out []map[string]string, err error) {
	var answer struct {
		ResultType string
		Result     json.RawMessage
	}
	if err := p.get("query", url.Values{"query": {expr}}, &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	var vector []struct{ Metric map[string]string }
	if err := json.Unmarshal(answer.Result, &vector); err != nil {
		return nil, fmt.Errorf("%s: a %s: %w", expr, answer.ResultType, err)
	}
	for _, v := range vector {
		out = append(out, v.Metric)
	}
	return out, nil
}

func (p prometheus) query(t *testing.T, expr string) []map[string]string {
	t.Helper()
	out, err := p.evaluate(expr)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// metricLabels are the labels of each metric.
type metricLabels map[string]map[string]bool

// await waits until each expression has a result, and returns all metrics.
func (p prometheus) await(t *testing.T, exprs ...string) metricLabels {
	t.Helper()
	rig.Until(t, func() string {
		for _, expr := range exprs {
			if got, err := p.evaluate(expr); err != nil || len(got) == 0 {
				return fmt.Sprintf("%s has no result: %v", expr, err)
			}
		}
		return ""
	})
	var series []map[string]string
	if err := p.get("series", url.Values{"match[]": {`{job="` + target["job"] + `"}`}}, &series); err != nil {
		t.Fatal(err)
	}
	out := metricLabels{}
	for _, s := range series {
		if out[s["__name__"]] == nil {
			out[s["__name__"]] = map[string]bool{}
		}
		for label := range s {
			out[s["__name__"]][label] = true
		}
	}
	return out
}

// documentedLabels checks the labels in the table of docs/metrics.md.
func documentedLabels(t *testing.T, series metricLabels) {
	t.Helper()
	doc := readText(t, filepath.Join(rig.Root(t), "docs", "metrics.md"))
	rows := regexp.MustCompile("(?m)^\\| `(crd_ipam_[a-z_]+)` \\| ([a-z, ]*) ?\\|").FindAllStringSubmatch(doc, -1)
	if len(rows) < 25 {
		t.Errorf("only %d metrics were read", len(rows))
	}
	for _, row := range rows {
		name := row[1]
		if series[name] == nil && series[name+"_bucket"] != nil {
			name += "_count"
		}
		if series[name] == nil {
			t.Errorf("no series of %s was scraped", name)
			continue
		}
		var got []string
		for label := range series[name] {
			if label != "__name__" && label != "instance" && target[label] == "" {
				got = append(got, label)
			}
		}
		want := strings.FieldsFunc(row[2], func(r rune) bool { return r == ',' || r == ' ' })
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("docs/metrics.md: %s has the labels %q, scraped were %q", name, want, got)
		}
	}
}

// check parses an expression and checks that its metrics exist, with the labels that it
// selects or groups by.
func (p prometheus) check(t *testing.T, what, expr string, series metricLabels) {
	t.Helper()
	var node map[string]any
	if err := p.get("parse_query", url.Values{"query": {expr}}, &node); err != nil {
		t.Errorf("%s: %s: %v", what, expr, err)
		return
	}
	if _, err := walk(node, series); err != nil {
		t.Errorf("%s: %s: %v", what, expr, err)
	}
}

// walk returns the labels that the metrics below a node of a syntax tree have.
func walk(node map[string]any, series metricLabels) (map[string]bool, error) {
	labels := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(node)) {
		children, _ := node[key].([]any) // of a call
		if child, ok := node[key].(map[string]any); ok && key != "matching" {
			children = []any{child}
		}
		for _, c := range children {
			child, ok := c.(map[string]any)
			if !ok || key == "matchers" {
				continue
			}
			below, err := walk(child, series)
			if err != nil {
				return nil, err
			}
			maps.Copy(labels, below)
		}
	}
	if kind := node["type"]; kind == "vectorSelector" || kind == "matrixSelector" {
		name, _ := node["name"].(string)
		if labels = series[name]; labels == nil {
			return nil, fmt.Errorf("there is no metric %q", name)
		}
	}
	for _, label := range named(node) {
		if !labels[label] {
			return nil, fmt.Errorf("no metric here has the label %q; there are %q", label, slices.Sorted(maps.Keys(labels)))
		}
	}
	return labels, nil
}

// named are the labels that a node itself names.
func named(node map[string]any) (out []string) {
	matching, _ := node["matching"].(map[string]any)
	for _, list := range []any{node["grouping"], node["matchers"], matching["labels"], matching["include"]} {
		all, _ := list.([]any)
		for _, e := range all {
			switch e := e.(type) {
			case string:
				out = append(out, e)
			case map[string]any: // a matcher
				out = append(out, e["name"].(string))
			}
		}
	}
	return out
}

// panel is one of the dashboard.
type panel struct {
	Type, Title string
	Targets     []struct{ Expr, LegendFormat string }
}

// variables puts values in the place of Grafana's.
var variables = strings.NewReplacer("$namespace", ".*", "$pool", ".*", "$__rate_interval", "1m")

func panels(t *testing.T) (out []panel) {
	t.Helper()
	var dashboard struct {
		Panels     []panel
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	read(t, component(t, "dashboard.json"), &dashboard)
	if len(dashboard.Panels) < 20 {
		t.Errorf("only %d panels were read", len(dashboard.Panels))
	}
	for _, v := range dashboard.Templating.List {
		// label_values(METRIC, LABEL) is Grafana's: the same question in PromQL.
		if m := regexp.MustCompile(`^label_values\((.*), ([a-z]+)\)$`).FindStringSubmatch(v.Definition); m != nil {
			dashboard.Panels = append(dashboard.Panels, panel{Title: "variable " + v.Name, Targets: []struct{ Expr, LegendFormat string }{{Expr: "group by (" + m[2] + ") (" + m[1] + ")"}}})
		}
	}
	return dashboard.Panels
}

// wantAlerts waits for alerts, by name and pool, and their states. Every rule must be
// evaluated without an error.
func (p prometheus) wantAlerts(t *testing.T, want map[string]string, alerts []rule) {
	t.Helper()
	rig.Until(t, func() string {
		var answer struct {
			Groups []struct {
				Rules []struct {
					Name, Health, LastError string
					Alerts                  []struct {
						State  string
						Labels map[string]string
					}
				}
			}
		}
		if err := p.get("rules", nil, &answer); err != nil {
			return err.Error()
		}
		got, evaluated := map[string]string{}, 0
		for _, g := range answer.Groups {
			for _, r := range g.Rules {
				if r.Health == "ok" {
					evaluated++
				}
				for _, a := range r.Alerts {
					got[r.Name+" {"+a.Labels["pool"]+"}"] = a.State
				}
			}
		}
		if evaluated != len(alerts) {
			return fmt.Sprintf("%d of %d rules were evaluated: %+v", evaluated, len(alerts), answer)
		}
		for name, state := range want {
			if got[name] != state {
				return fmt.Sprintf("%s is %q, want %s; there are %v", name, got[name], state, got)
			}
		}
		for _, name := range []string{"IPAMNoLeader {}", "IPAMControllerFails {}", "IPAMBlockFull {shared}", "IPAMPoolNotReady {shared}"} {
			if got[name] != "" {
				return fmt.Sprintf("%s is %s", name, got[name])
			}
		}
		return ""
	})
}
