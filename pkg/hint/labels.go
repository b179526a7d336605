// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"encoding/json"
	"os"
	"time"
)

// labelsFile has the labels of this node's Node object, as JSON. No pool's file begins
// with "@".
const labelsFile = "@labels.json"

// Labels returns this node's labels as they were saved, if that is at most so long ago.
func (h *Hint) Labels(age time.Duration) (labels map[string]string, ok bool) {
	data, err := os.ReadFile(h.path("pools", labelsFile))
	if err != nil || !h.youngerThan(age, "pools", labelsFile) {
		return nil, false
	}
	err = json.Unmarshal(data, &labels)
	return labels, err == nil
}

// SetLabels saves this node's labels.
func (h *Hint) SetLabels(labels map[string]string) {
	data, err := json.Marshal(labels)
	if err == nil {
		err = h.rename(func(tmp string) error { return os.WriteFile(tmp, data, 0o600) }, "pools", labelsFile)
	}
	h.failed("saving the node's labels", err)
}
