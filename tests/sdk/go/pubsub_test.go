package sdk

import (
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"

	dapr "github.com/dapr/go-sdk/client"
	"github.com/dapr/go-sdk/service/common"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
)

// Publishes {"id": id, "amount": amount} as the SDK does by itself.
func publish(t *testing.T, topic, id string, amount int, options ...dapr.PublishEventOption) {
	t.Helper()
	data := map[string]any{"id": id, "amount": amount}
	must(t, client.PublishEvent(testContext(t), "pubsub", topic, data, options...))
}

func bothApps(t *testing.T, play func(t *testing.T, a *app)) {
	for _, a := range []*app{httpApp, grpcApp} {
		t.Run(a.id, func(t *testing.T) { play(t, a) })
	}
}

func arrivesInAnEnvelope(t *testing.T, a *app) {
	id := uuid.NewString()
	publish(t, "plain", id, 3)
	e := a.received(t, "plain", id, 1)
	var data struct {
		ID     string `json:"id"`
		Amount int    `json:"amount"`
	}
	must(t, json.Unmarshal(e.Data, &data))
	equal(t, "id", data.ID, id)
	equal(t, "amount", data.Amount, 3)
	equal(t, "has an id", e.ID != "", true)
	equal(t, "source", e.Source, "tester")
	equal(t, "type", e.Type, "com.dapr.event.sent")
	equal(t, "content type", e.ContentType, "application/json")
	equal(t, "pubsub", e.PubSub, "pubsub")
	equal(t, "topic", e.Topic, "plain")
}

func TestPublishToHttpApp(t *testing.T) { arrivesInAnEnvelope(t, httpApp) }

func TestPublishToGrpcApp(t *testing.T) { arrivesInAnEnvelope(t, grpcApp) }

func TestPublishToDeclaredSubscription(t *testing.T) {
	id := uuid.NewString()
	publish(t, "declared", id, 1)
	httpApp.received(t, "declared", id, 1)
}

func TestPublishToRules(t *testing.T) {
	for _, topic := range []string{"ruled", "chosen"} {
		for rule, amount := range map[string]int{"urgent": 1000, "large": 101, "other": 100} {
			id := uuid.NewString()
			var options []dapr.PublishEventOption
			if rule == "urgent" {
				options = append(options, dapr.PublishEventWithMetadata(map[string]string{"cloudevent.type": "urgent"}))
			}
			publish(t, topic, id, amount, options...)
			httpApp.received(t, topic+"/"+rule, id, 1)
			if topic == "chosen" {
				grpcApp.received(t, topic+"/"+rule, id, 1)
			}
		}
	}
}

func TestPublishBulk(t *testing.T) {
	id := uuid.NewString()
	var events []any
	for i := range 20 {
		events = append(events, map[string]string{"id": fmt.Sprintf("%s-%d-", id, i)})
	}
	answer := client.PublishEvents(testContext(t), "pubsub", "plain", events)
	must(t, answer.Error)
	equal(t, "failed", len(answer.FailedEvents), 0)
	for i := range 20 {
		httpApp.received(t, "plain", fmt.Sprintf("%s-%d-", id, i), 1)
		grpcApp.received(t, "plain", fmt.Sprintf("%s-%d-", id, i), 1)
	}
}

func TestPublishCloudEvent(t *testing.T) {
	bothApps(t, func(t *testing.T, a *app) {
		id := uuid.NewString()
		body := fmt.Sprintf(`{"specversion": "1.0", "id": %q, "source": "elsewhere", "type": "order.made",
			"datacontenttype": "application/json", "data": {"of": %q}}`, id, id)
		must(t, client.PublishEvent(testContext(t), "pubsub", "plain", []byte(body),
			dapr.PublishEventWithContentType("application/cloudevents+json")))
		e := a.received(t, "plain", id, 1)
		equal(t, "id", e.ID, id)
		equal(t, "source", e.Source, "elsewhere")
		equal(t, "type", e.Type, "order.made")
	})
}

func TestPublishRaw(t *testing.T) {
	bothApps(t, func(t *testing.T, a *app) {
		body := []byte("raw " + uuid.NewString())
		must(t, client.PublishEvent(testContext(t), "pubsub", "raw", body, dapr.PublishEventWithRawPayload()))
		equal(t, "payload", string(a.received(t, "raw", string(body), 1).Data), string(body))
	})
}

func TestPublishRetry(t *testing.T) {
	bothApps(t, func(t *testing.T, a *app) {
		id := uuid.NewString()
		publish(t, "flaky", id, 1)
		a.received(t, "flaky", id, 2)
	})
}

func TestPublishDrop(t *testing.T) {
	bothApps(t, func(t *testing.T, a *app) {
		id := uuid.NewString()
		publish(t, "poison", id, 1)
		a.received(t, "poison", id, 1)
		a.received(t, "graveyard", id, 1)
	})
}

func TestPublishUnknownPubsub(t *testing.T) {
	err := client.PublishEvent(testContext(t), "nowhere", "plain", []byte("{}"))
	failed(t, err, codes.InvalidArgument, "pubsub nowhere is not found")
	equal(t, "reason", reason(err), "DAPR_PUBSUB_NOT_FOUND")
}

func TestSubscribeStream(t *testing.T) {
	t.Run("handler", func(t *testing.T) {
		id := uuid.NewString()
		var seen atomic.Int32
		stop, err := client.SubscribeWithHandler(testContext(t),
			dapr.SubscriptionOptions{PubsubName: "pubsub", Topic: "streamed"},
			func(e *common.TopicEvent) common.SubscriptionResponseStatus {
				if e.Data.(map[string]any)["id"] == id && seen.Add(1) == 1 {
					return common.SubscriptionResponseStatusRetry
				}
				return common.SubscriptionResponseStatusSuccess
			})
		must(t, err)
		publish(t, "streamed", id, 1)
		until(t, "a second delivery", func() bool { return seen.Load() == 2 })
		must(t, stop())
	})
	t.Run("messages", func(t *testing.T) {
		graveyard := "graveyard"
		subscription, err := client.Subscribe(testContext(t), dapr.SubscriptionOptions{
			PubsubName: "pubsub", Topic: "pulled", DeadLetterTopic: &graveyard,
		})
		must(t, err)
		kept, dropped := uuid.NewString(), uuid.NewString()
		publish(t, "pulled", kept, 1)
		message, err := subscription.Receive()
		must(t, err)
		equal(t, "id", message.Data.(map[string]any)["id"].(string), kept)
		must(t, message.Success())
		publish(t, "pulled", dropped, 1)
		message, err = subscription.Receive()
		must(t, err)
		must(t, message.Drop())
		httpApp.received(t, "graveyard", dropped, 1)
		must(t, subscription.Close())
		_, err = subscription.Receive()
		equal(t, "ends", err != nil, true)
	})
}
