package sdk;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static sdk.Stage.fails;
import static sdk.Stage.get;
import static sdk.Stage.until;

import com.fasterxml.jackson.databind.JsonNode;
import io.dapr.client.SubscriptionListener;
import io.dapr.client.domain.CloudEvent;
import io.dapr.client.domain.PublishEventRequest;
import io.dapr.utils.TypeRef;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import reactor.core.publisher.Mono;

class PubSubTest {
  private static Stage stage;

  private final String id = UUID.randomUUID().toString();

  @BeforeAll
  static void open() throws Exception {
    stage = Stage.open();
  }

  private static void publish(String topic, String id, int amount, Map<String, String> metadata) {
    get(stage.dapr.publishEvent("pubsub", topic, Map.of("id", id, "amount", amount), metadata));
  }

  private static void publish(String topic, String id) {
    publish(topic, id, 1, Map.of());
  }

  private void arrivesInAnEnvelope(App app) throws Exception {
    publish("plain", id, 3, Map.of());
    App.Event event = app.received("plain", id, 1);
    JsonNode data = Stage.JSON.readTree(event.data());
    assertEquals(id, data.get("id").asText());
    assertEquals(3, data.get("amount").asInt());
    assertNotNull(event.id());
    assertEquals("tester", event.source());
    assertEquals("com.dapr.event.sent", event.type());
    assertEquals("application/json", event.contentType());
    assertEquals("pubsub", event.pubsub());
    assertEquals("plain", event.topic());
  }

  @Test
  void publishToHttpApp() throws Exception {
    arrivesInAnEnvelope(stage.httpApp);
  }

  @Test
  void publishToGrpcApp() throws Exception {
    arrivesInAnEnvelope(stage.grpcApp);
  }

  @Test
  void publishToDeclaredSubscription() throws Exception {
    publish("declared", id);
    stage.httpApp.received("declared", id, 1);
  }

  @Test
  void publishToRules() throws Exception {
    publish("ruled", id + "-urgent", 1000, Map.of("cloudevent.type", "urgent"));
    publish("ruled", id + "-large", 101, Map.of());
    publish("ruled", id + "-other", 100, Map.of());
    for (String rule : List.of("urgent", "large", "other")) {
      stage.httpApp.received("ruled/" + rule, id + "-" + rule, 1);
    }
  }

  @Test
  void publishBulk() throws Exception {
    List<String> events = new ArrayList<>();
    for (int i = 0; i < 20; i++) {
      events.add(id + "-" + i + "-");
    }
    assertTrue(get(stage.dapr.publishEvents("pubsub", "plain", "text/plain", events)).getFailedEntries().isEmpty());
    for (String event : events) {
      stage.httpApp.received("plain", event, 1);
      stage.grpcApp.received("plain", event, 1);
    }
  }

  @Test
  void publishCloudEvent() throws Exception {
    CloudEvent<String> event = new CloudEvent<>(id, "elsewhere", "order.made", "1.0", "text/plain", "of " + id);
    get(stage.dapr.publishEvent(
        new PublishEventRequest("pubsub", "plain", event).setContentType(CloudEvent.CONTENT_TYPE)));
    for (App app : List.of(stage.httpApp, stage.grpcApp)) {
      App.Event got = app.received("plain", id, 1);
      assertEquals(id, got.id());
      assertEquals("elsewhere", got.source());
      assertEquals("order.made", got.type());
    }
  }

  @Test
  void publishRaw() throws Exception {
    byte[] body = ("raw " + id).getBytes();
    get(stage.dapr.publishEvent(
        new PublishEventRequest("pubsub", "raw", body).setMetadata(Map.of("rawPayload", "true"))));
    assertEquals("raw " + id, stage.httpApp.received("raw", id, 1).data());
    assertEquals("raw " + id, stage.grpcApp.received("raw", id, 1).data());
  }

  @Test
  void publishRetry() throws Exception {
    publish("flaky", id);
    stage.httpApp.received("flaky", id, 2);
    stage.grpcApp.received("flaky", id, 2);
  }

  @Test
  void publishDrop() throws Exception {
    publish("poison", id);
    for (App app : List.of(stage.httpApp, stage.grpcApp)) {
      app.received("poison", id, 1);
      app.received("graveyard", id, 1);
    }
  }

  @Test
  void publishUnknownPubsub() {
    var error = fails(stage.dapr.publishEvent("nowhere", "plain", "x"), "INVALID_ARGUMENT",
        "pubsub nowhere is not found");
    assertEquals("DAPR_PUBSUB_NOT_FOUND", Stage.reason(error));
  }

  @Test
  void subscribeStream() throws Exception {
    AtomicInteger seen = new AtomicInteger();
    List<RuntimeException> errors = new CopyOnWriteArrayList<>();
    var listener = new SubscriptionListener<Map<String, Object>>() {
      @Override
      public Mono<Status> onEvent(CloudEvent<Map<String, Object>> event) {
        boolean again = id.equals(event.getData().get("id")) && seen.incrementAndGet() == 1;
        return Mono.just(again ? Status.RETRY : Status.SUCCESS);
      }

      @Override
      public void onError(RuntimeException error) {
        errors.add(error);
      }
    };
    // Closing the subscription ends the threads of the SDK; it leaves the stream open.
    try (var subscription =
        stage.preview.subscribeToEvents("pubsub", "streamed", listener, new TypeRef<Map<String, Object>>() {})) {
      // The SDK does not say when it is subscribed, and what is published before is not for it.
      until("subscribed to streamed", () -> subscribed("streamed"));
      publish("streamed", id);
      until("a second delivery", () -> seen.get() == 2);
    }
    assertEquals(List.of(), errors);
  }

  private static boolean subscribed(String topic) {
    return get(stage.dapr.getMetadata()).getSubscriptions().stream().anyMatch(s -> topic.equals(s.getTopic()));
  }

  @Test
  void subscribeStreamAsFlux() throws Exception {
    List<String> got = new CopyOnWriteArrayList<>();
    var flux = stage.preview.subscribeToTopic("pubsub", "flowing", TypeRef.STRING).subscribe(got::add);
    try {
      until("subscribed to flowing", () -> subscribed("flowing"));
      for (int i = 0; i < 10; i++) {
        get(stage.dapr.publishEvent("pubsub", "flowing", id + i));
      }
      until("ten events", () -> got.size() == 10);
    } finally {
      flux.dispose();
    }
    until("unsubscribed", () -> !subscribed("flowing"));
  }
}
