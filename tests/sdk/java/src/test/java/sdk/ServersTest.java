package sdk;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static sdk.Stage.fails;
import static sdk.Stage.get;
import static sdk.Stage.until;

import io.dapr.client.DaprClient;
import io.dapr.client.domain.SubscribeConfigurationResponse;
import io.dapr.client.domain.UnlockResponseStatus;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

/** Configuration and locks, which only servers have. */
@Tag("servers")
class ServersTest {
  private static Stage stage;
  private static DaprClient dapr;

  private final String key = "key-" + UUID.randomUUID();

  @BeforeAll
  static void open() throws Exception {
    stage = Stage.open();
    dapr = stage.dapr;
  }

  @Test
  void bindingOfServer() throws Exception {
    stage.setting("write", key, "on", "7");
    stage.setting("read", key, "on", "7");
  }

  @Test
  void configurationGet() throws Exception {
    stage.setting("write", key + "-a", "on", "1");
    stage.setting("write", key + "-b", "off", "2");
    var items = get(dapr.getConfiguration("configstore", key + "-a", key + "-b", key + "-none"));
    assertEquals(
        Map.of(key + "-a", "on 1", key + "-b", "off 2"),
        items.entrySet().stream().collect(Collectors.toMap(
            Map.Entry::getKey, item -> item.getValue().getValue() + " " + item.getValue().getVersion())));
  }

  @Test
  void configurationSubscribe() throws Exception {
    BlockingQueue<SubscribeConfigurationResponse> told = new LinkedBlockingQueue<>();
    var subscription = dapr.subscribeConfiguration("configstore", key).subscribe(told::add);
    SubscribeConfigurationResponse change = null;
    // Changes from before the watch was in place are not told.
    long end = System.nanoTime() + Stage.DEADLINE.toNanos();
    for (int version = 1; change == null || change.getItems().isEmpty(); version++) {
      assertTrue(System.nanoTime() < end, "no change is told");
      stage.setting("write", key, "value " + version, String.valueOf(version));
      change = told.poll(500, TimeUnit.MILLISECONDS);
    }
    String id = change.getSubscriptionId();
    stage.setting("write", key, "last", "100000");
    do {
      change = told.poll(Stage.DEADLINE.toSeconds(), TimeUnit.SECONDS);
      assertEquals(Set.of(key), change.getItems().keySet());
    } while (!change.getItems().get(key).getValue().equals("last"));
    assertEquals("100000", change.getItems().get(key).getVersion());
    assertTrue(get(dapr.unsubscribeConfiguration(id, "configstore")).getIsUnsubscribed());
    until("the subscription ends", subscription::isDisposed);
  }

  @Test
  void configurationUnknownStore() {
    var error = fails(dapr.getConfiguration("nowhere", "key"), "INVALID_ARGUMENT",
        "configuration store nowhere not found");
    assertEquals("ERR_CONFIGURATION_STORE_NOT_FOUND", Stage.reason(error));
  }

  @Test
  void lockHasOneOwner() {
    assertTrue(lock("first", 60));
    assertFalse(lock("second", 60));
    assertEquals(UnlockResponseStatus.LOCK_BELONG_TO_OTHERS, unlock("second"));
    assertEquals(UnlockResponseStatus.SUCCESS, unlock("first"));
    assertEquals(UnlockResponseStatus.LOCK_UNEXIST, unlock("first"));
    assertTrue(lock("second", 60));
  }

  @Test
  void lockExpires() throws Exception {
    assertTrue(lock("first", 1));
    until("the lock is free", () -> lock("second", 60));
  }

  @Test
  void lockUnknownStore() {
    fails(stage.preview.tryLock("nowhere", "resource", "owner", 10), "INVALID_ARGUMENT",
        "lock store nowhere not found");
  }

  private boolean lock(String owner, int seconds) {
    return get(stage.preview.tryLock("lockstore", key, owner, seconds));
  }

  private UnlockResponseStatus unlock(String owner) {
    return get(stage.preview.unlock("lockstore", key, owner));
  }
}
