// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package hint

import "time"

// labelsFile has the labels of this node's Node object, as JSON. No pool's file begins
// with "@".
const labelsFile = "@labels.json"

// Labels returns this node's labels as they were saved, if that is at most so long ago.
func (h *Hint) Labels(age time.Duration) (labels map[string]string, ok bool) {
	if !h.youngerThan(age, "pools", labelsFile) {
		return nil, false
	}
	ok = h.readJSON(&labels, "pools", labelsFile)
	return labels, ok
}

// SetLabels saves this node's labels.
func (h *Hint) SetLabels(labels map[string]string) {
	h.failed("saving the node's labels", h.saveJSON(labels, "pools", labelsFile))
}
