package sdk

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	dapr "github.com/dapr/go-sdk/client"
	"google.golang.org/grpc/codes"
)

func TestBindingOfServer(t *testing.T) {
	needsServers(t)
	key := newKey()
	writeSetting(t, key, "on", "7")
	answer, want := theBackend(t).Read.invoke(t, key, "on", "7")
	equal(t, "answer", answer, want)
}

func TestConfigurationGet(t *testing.T) {
	needsServers(t)
	key := newKey()
	writeSetting(t, key+"-a", "on", "1")
	writeSetting(t, key+"-b", "off", "2")
	asked := []string{key + "-a", key + "-b", key + "-none"}
	items, err := client.GetConfigurationItems(testContext(t), "configstore", asked)
	must(t, err)
	equal(t, "items", len(items), 2)
	for i, want := range []string{"on 1", "off 2"} {
		item := items[asked[i]]
		equal(t, asked[i], item.Value+" "+item.Version, want)
	}
}

func TestConfigurationSubscribe(t *testing.T) {
	needsServers(t)
	type change struct {
		id    string
		items map[string]*dapr.ConfigurationItem
	}
	key, told := newKey(), make(chan change, 1000)
	handle := func(id string, items map[string]*dapr.ConfigurationItem) { told <- change{id, items} }
	id, err := client.SubscribeConfigurationItems(testContext(t), "configstore", []string{key}, handle)
	must(t, err)
	version := 0
	until(t, "a change is told", func() bool {
		// Changes from before the watch was in place are not told.
		version++
		writeSetting(t, key, fmt.Sprint("value ", version), strconv.Itoa(version))
		select {
		case first := <-told:
			equal(t, "id", first.id, id)
			return true
		case <-time.After(500 * time.Millisecond):
			return false
		}
	})
	writeSetting(t, key, "last", "100000")
	until(t, "the last change is told", func() bool {
		select {
		case next := <-told:
			equal(t, "items", len(next.items), 1)
			item := next.items[key]
			return item.Value == "last" && item.Version == "100000"
		case <-time.After(deadline):
			return false
		}
	})
	must(t, client.UnsubscribeConfigurationItems(testContext(t), "configstore", id))
}

func TestConfigurationUnknownStore(t *testing.T) {
	needsServers(t)
	_, err := client.GetConfigurationItem(testContext(t), "nowhere", "key")
	failed(t, err, codes.InvalidArgument, "configuration store nowhere not found")
	equal(t, "reason", reason(err), "ERR_CONFIGURATION_STORE_NOT_FOUND")
}

func tryLock(t *testing.T, id, owner string, seconds int32) bool {
	t.Helper()
	request := &dapr.LockRequest{ResourceID: id, LockOwner: owner, ExpiryInSeconds: seconds}
	answer, err := client.TryLockAlpha1(testContext(t), "lockstore", request)
	must(t, err)
	return answer.Success
}

func unlock(t *testing.T, id, owner string) string {
	t.Helper()
	request := &dapr.UnlockRequest{ResourceID: id, LockOwner: owner}
	answer, err := client.UnlockAlpha1(testContext(t), "lockstore", request)
	must(t, err)
	return answer.Status
}

func TestLockHasOneOwner(t *testing.T) {
	needsServers(t)
	id := newKey()
	equal(t, "first has it", tryLock(t, id, "first", 60), true)
	equal(t, "second has it", tryLock(t, id, "second", 60), false)
	equal(t, "second gives it back", unlock(t, id, "second"), "LOCK_BELONGS_TO_OTHERS")
	equal(t, "first gives it back", unlock(t, id, "first"), "SUCCESS")
	equal(t, "first gives it back again", unlock(t, id, "first"), "LOCK_DOES_NOT_EXIST")
	equal(t, "second has it now", tryLock(t, id, "second", 60), true)
}

func TestLockExpires(t *testing.T) {
	needsServers(t)
	id := newKey()
	equal(t, "first has it", tryLock(t, id, "first", 1), true)
	until(t, "the lock is free", func() bool { return tryLock(t, id, "second", 60) })
}

func TestLockUnknownStore(t *testing.T) {
	needsServers(t)
	request := &dapr.LockRequest{ResourceID: "resource", LockOwner: "owner", ExpiryInSeconds: 10}
	_, err := client.TryLockAlpha1(testContext(t), "nowhere", request)
	failed(t, err, codes.InvalidArgument, "lock store nowhere not found")
}
