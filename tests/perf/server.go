// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// requests are how many requests the API server has answered, by verb and
// resource, as in "POST ipallocations".
type requests map[string]int

var requestLine = regexp.MustCompile(`^apiserver_request_total\{(.*)\} (\S+)$`)

// requests asks the server's own count. It counts an answer when the client may
// already have it: so this waits until the count stands still, or for some
// seconds, where the controller is at work.
func (b *bench) requests() (requests, error) {
	const looks, still = 100, 4
	var last requests
	same := 0
	for range looks {
		now, err := b.scrape()
		if err != nil {
			return nil, err
		}
		if last == nil || now.sum("", "") != last.sum("", "") {
			same = 0
		}
		last = now
		if same++; same == still {
			return now, nil
		}
		if err := b.pause(50 * time.Millisecond); err != nil { // between two looks
			return nil, err
		}
	}
	return last, nil
}

// ours are the resources whose requests are counted: others are the server's own business, or
// this program's. Leases are both the controller's, every 2 s, and the server's, every 10 s.
var ours = map[string]bool{"ippools": true, "cidrpools": true, "ipallocations": true, "events": true}

func (b *bench) scrape() (requests, error) {
	body, err := b.get(strings.TrimSuffix(b.env.Config.Host, "/") + "/metrics")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	out := requests{}
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := requestLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		labels := map[string]string{}
		for _, l := range strings.Split(m[1], ",") {
			key, value, _ := strings.Cut(l, "=")
			labels[key] = strings.Trim(value, `"`)
		}
		if labels["verb"] == "WATCH" || !ours[labels["resource"]] {
			continue
		}
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return nil, err
		}
		out[labels["verb"]+" "+labels["resource"]] += int(n)
	}
	return out, lines.Err()
}

// metric returns the value of a metric that has no labels.
func metric(body io.Reader, name string) (float64, error) {
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("there is no metric %s", name), lines.Err())
}

func (b *bench) get(url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp.Body, nil
}

// since is what was asked since an earlier count.
func (r requests) since(before requests) requests {
	out := requests{}
	for k, n := range r {
		if d := n - before[k]; d != 0 {
			out[k] = d
		}
	}
	return out
}

// sum adds up the requests of a verb ("" for all) for a resource ("" for all).
func (r requests) sum(verb, resource string) int {
	n := 0
	for k, v := range r {
		of, for_, _ := strings.Cut(k, " ")
		if (verb == "" || verb == of) && (resource == "" || resource == for_) {
			n += v
		}
	}
	return n
}

// writes adds up the requests for changes of a resource ("" for all).
func (r requests) writes(resource string) int {
	n := 0
	for _, verb := range []string{"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"} {
		n += r.sum(verb, resource)
	}
	return n
}

// kv is an object as etcd has it.
type kv struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value,omitempty"`
}

// etcd asks etcd itself, over its JSON gateway.
func (b *bench) etcd(method string, body, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(b.ctx, http.MethodPost, b.env.EtcdURL()+"/v3/kv/"+method, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd %s: %s: %s", method, resp.Status, out)
	}
	return json.Unmarshal(out, answer)
}

// stored returns an object as the API server has stored it.
func (b *bench) stored(key string) ([]byte, error) {
	var answer struct {
		KVs []kv `json:"kvs"`
	}
	if err := b.etcd("range", kv{Key: []byte(key)}, &answer); err != nil {
		return nil, err
	}
	if len(answer.KVs) != 1 {
		return nil, fmt.Errorf("etcd has %d objects at %s, want 1", len(answer.KVs), key)
	}
	return answer.KVs[0].Value, nil
}

// batch is how many objects go into one transaction; etcd takes 128.
const batch = 100

// store puts n objects into etcd as the API server would have, some at a time.
func (b *bench) store(n int, object func(i int) (kv, error)) error {
	type put struct {
		RequestPut kv `json:"requestPut"`
	}
	_, _, err := atOnce(8, (n+batch-1)/batch, func(i int) (sample, error) {
		var txn struct {
			Success []put `json:"success"`
		}
		for j := i * batch; j < min(n, (i+1)*batch); j++ {
			o, err := object(j)
			if err != nil {
				return sample{}, err
			}
			txn.Success = append(txn.Success, put{o})
		}
		var answer struct {
			Succeeded bool `json:"succeeded"`
		}
		err := b.etcd("txn", txn, &answer)
		if err == nil && !answer.Succeeded {
			err = fmt.Errorf("etcd refused a transaction")
		}
		return sample{}, err
	})
	return err
}

// wipe removes all objects whose keys begin with prefix.
func (b *bench) wipe(prefix string) error {
	to := []byte(prefix)
	to[len(to)-1]++
	var answer struct{}
	return b.etcd("deleterange", map[string][]byte{"key": []byte(prefix), "range_end": to}, &answer)
}
