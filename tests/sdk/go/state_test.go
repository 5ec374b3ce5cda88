package sdk

import (
	"testing"

	dapr "github.com/dapr/go-sdk/client"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
)

const store = "statestore"

var firstWrite = &dapr.StateOptions{Concurrency: dapr.StateConcurrencyFirstWrite, Consistency: dapr.StateConsistencyStrong}

func newKey() string { return "key-" + uuid.NewString() }

func save(t *testing.T, key, value string) {
	t.Helper()
	must(t, client.SaveState(testContext(t), store, key, []byte(value), nil))
}

func get(t *testing.T, from dapr.Client, key string) *dapr.StateItem {
	t.Helper()
	item, err := from.GetState(testContext(t), store, key, nil)
	must(t, err)
	return item
}

func holds(t *testing.T, key, value string) {
	t.Helper()
	equal(t, "value of "+key, string(get(t, client, key).Value), value)
}

func TestStateSaveAndGet(t *testing.T) {
	key, value := newKey(), `{"sum": 9007199254740993, "name": "ä"}`
	save(t, key, value)
	item := get(t, client, key)
	equal(t, "value", string(item.Value), value)
	equal(t, "has an ETag", item.Etag != "", true)
}

func TestStateGetOfAMissingKey(t *testing.T) {
	item := get(t, client, newKey())
	equal(t, "length", len(item.Value), 0)
	equal(t, "ETag", item.Etag, "")
}

func TestStateBulk(t *testing.T) {
	key, ctx := newKey(), testContext(t)
	must(t, client.SaveBulkState(ctx, store,
		&dapr.SetStateItem{Key: key + "-a", Value: []byte("1")}, &dapr.SetStateItem{Key: key + "-b", Value: []byte("2")}))
	items, err := client.GetBulkState(ctx, store, []string{key + "-b", key + "-none", key + "-a"}, nil, 2)
	must(t, err)
	equal(t, "items", len(items), 3)
	for i, want := range []string{"2", "", "1"} {
		equal(t, items[i].Key, string(items[i].Value), want)
		equal(t, items[i].Key+" has an ETag", items[i].Etag != "", want != "")
		equal(t, "error", items[i].Error, "")
	}
	must(t, client.DeleteBulkState(ctx, store, []string{key + "-a", key + "-b"}, nil))
	holds(t, key+"-a", "")
	holds(t, key+"-b", "")
}

func TestStateDelete(t *testing.T) {
	key := newKey()
	save(t, key, "here")
	must(t, client.DeleteState(testContext(t), store, key, nil))
	holds(t, key, "")
}

func TestStateEtagMismatch(t *testing.T) {
	key, ctx := newKey(), testContext(t)
	save(t, key, "one")
	old := get(t, client, key).Etag
	must(t, client.SaveStateWithETag(ctx, store, key, []byte("two"), old, nil))
	err := client.SaveStateWithETag(ctx, store, key, []byte("three"), old, nil)
	failed(t, err, codes.Aborted, "possible etag mismatch")
	err = client.DeleteStateWithETag(ctx, store, key, &dapr.ETag{Value: old}, nil, firstWrite)
	failed(t, err, codes.Aborted, "possible etag mismatch")
	holds(t, key, "two")
	err = client.DeleteStateWithETag(ctx, store, key, &dapr.ETag{Value: get(t, client, key).Etag}, nil, firstWrite)
	must(t, err)
	holds(t, key, "")
}

func TestStateFirstWrite(t *testing.T) {
	key, ctx := newKey(), testContext(t)
	mine := &dapr.SetStateItem{Key: key, Value: []byte("mine"), Options: firstWrite}
	must(t, client.SaveBulkState(ctx, store, mine))
	yours := &dapr.SetStateItem{Key: key, Value: []byte("yours"), Options: firstWrite}
	failed(t, client.SaveBulkState(ctx, store, yours), codes.Aborted, "")
	holds(t, key, "mine")
}

func TestStateTransaction(t *testing.T) {
	key := newKey()
	save(t, key+"-old", "old")
	must(t, client.ExecuteStateTransaction(testContext(t), store, nil, []*dapr.StateOperation{
		{Type: dapr.StateOperationTypeUpsert, Item: &dapr.SetStateItem{Key: key + "-new", Value: []byte("new")}},
		{Type: dapr.StateOperationTypeDelete, Item: &dapr.SetStateItem{Key: key + "-old"}},
	}))
	holds(t, key+"-new", "new")
	holds(t, key+"-old", "")
}

func TestStateTransactionIsAtomic(t *testing.T) {
	key := newKey()
	save(t, key, "one")
	old := get(t, client, key).Etag
	save(t, key, "two")
	err := client.ExecuteStateTransaction(testContext(t), store, nil, []*dapr.StateOperation{
		{Type: dapr.StateOperationTypeUpsert, Item: &dapr.SetStateItem{Key: key + "-new", Value: []byte("new")}},
		{Type: dapr.StateOperationTypeUpsert, Item: &dapr.SetStateItem{
			Key: key, Value: []byte("three"), Etag: &dapr.ETag{Value: old}, Options: firstWrite,
		}},
	})
	failed(t, err, codes.Aborted, "")
	holds(t, key+"-new", "")
	holds(t, key, "two")
}

func TestStateTtl(t *testing.T) {
	key := newKey()
	must(t, client.SaveState(testContext(t), store, key, []byte("brief"), map[string]string{"ttlInSeconds": "1"}))
	item := get(t, client, key)
	equal(t, "value", string(item.Value), "brief")
	equal(t, "says when it ends", item.Metadata["ttlExpireTime"] != "", true)
	until(t, key+" is gone", func() bool { return len(get(t, client, key).Value) == 0 })
}

func TestStateUnknownStore(t *testing.T) {
	_, err := client.GetState(testContext(t), "nowhere", newKey(), nil)
	failed(t, err, codes.InvalidArgument, "state store nowhere is not found")
	equal(t, "reason", reason(err), "DAPR_STATE_NOT_FOUND")
}

func TestStateKeyWithSeparator(t *testing.T) {
	err := client.SaveState(testContext(t), store, "a||b", []byte("x"), nil)
	failed(t, err, codes.InvalidArgument, "")
	equal(t, "reason", reason(err), "DAPR_STATE_ILLEGAL_KEY")
}

func TestStateSurvivesKill(t *testing.T) {
	key, victim := newKey(), start{AppID: "victim"}
	must(t, connect(t, mustRun(t, victim)).SaveState(testContext(t), store, key, []byte("kept"), nil))
	equal(t, "status", ended(t, "/kill", "victim"), -9)
	equal(t, "value", string(get(t, connect(t, mustRun(t, victim)), key).Value), "kept")
}
