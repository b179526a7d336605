// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"maps"
	"sync"
)

// table is a map that several goroutines use. Its zero value is empty.
type table[K comparable, V any] struct {
	mu  sync.Mutex
	all map[K]V
}

// get returns the value of a key, or false and a zero value.
func (t *table[K, V]) get(key K) (value V, found bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	value, found = t.all[key]
	return value, found
}

// of returns the value of a key, or a zero value.
func (t *table[K, V]) of(key K) V {
	value, _ := t.get(key)
	return value
}

func (t *table[K, V]) set(key K, value V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[K]V{}
	}
	t.all[key] = value
}

// change replaces the value of a key by what f makes of it.
func (t *table[K, V]) change(key K, f func(V) V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[K]V{}
	}
	t.all[key] = f(t.all[key])
}

func (t *table[K, V]) forget(key K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, key)
}

// forgetAll removes what gone says of.
func (t *table[K, V]) forgetAll(gone func(K, V) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.all, gone)
}

func (t *table[K, V]) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all)
}

func (t *table[K, V]) copy() map[K]V {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.all)
}
