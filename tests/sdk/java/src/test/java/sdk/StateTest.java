package sdk;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static sdk.Stage.fails;
import static sdk.Stage.get;
import static sdk.Stage.until;

import io.dapr.client.DaprClient;
import io.dapr.client.domain.SaveStateRequest;
import io.dapr.client.domain.State;
import io.dapr.client.domain.StateOptions;
import io.dapr.client.domain.TransactionalStateOperation;
import io.dapr.client.domain.TransactionalStateOperation.OperationType;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

class StateTest {
  private static final String STORE = "statestore";
  private static final StateOptions FIRST_WRITE =
      new StateOptions(StateOptions.Consistency.STRONG, StateOptions.Concurrency.FIRST_WRITE);
  private static DaprClient dapr;

  private final String key = "key-" + UUID.randomUUID();

  /** A value as an app has them. */
  record Order(long sum, String name) {}

  @BeforeAll
  static void open() throws Exception {
    dapr = Stage.open().dapr;
  }

  private static void save(String key, String value) {
    get(dapr.saveState(STORE, key, value));
  }

  private static State<String> load(String key) {
    return get(dapr.getState(STORE, key, String.class));
  }

  @Test
  void stateSaveAndGet() {
    Order order = new Order(9007199254740993L, "ä");
    get(dapr.saveState(STORE, key, order));
    State<Order> state = get(dapr.getState(STORE, key, Order.class));
    assertEquals(order, state.getValue());
    assertNotNull(state.getEtag());
    // Bytes are JSON to the SDK and must come back as they are.
    byte[] bytes = "{ \"sum\" : 1.50 }".getBytes();
    get(dapr.saveState(STORE, key, bytes));
    assertArrayEquals(bytes, get(dapr.getState(STORE, key, byte[].class)).getValue());
  }

  @Test
  void stateGetOfAMissingKey() {
    State<String> state = load(key);
    assertNull(state.getValue());
    assertNull(state.getEtag());
  }

  @Test
  void stateBulk() {
    get(dapr.saveBulkState(STORE, List.of(new State<>(key + "-a", "1", ""), new State<>(key + "-b", "2", ""))));
    List<State<String>> items =
        get(dapr.getBulkState(STORE, List.of(key + "-b", key + "-none", key + "-a"), String.class));
    assertEquals(List.of(key + "-b", key + "-none", key + "-a"), items.stream().map(State::getKey).toList());
    assertEquals("2", items.get(0).getValue());
    assertNull(items.get(1).getValue());
    assertNull(items.get(1).getEtag());
    assertEquals("1", items.get(2).getValue());
    assertNotNull(items.get(2).getEtag());
  }

  @Test
  void stateDelete() {
    save(key, "here");
    get(dapr.deleteState(STORE, key));
    assertNull(load(key).getValue());
  }

  @Test
  void stateEtagMismatch() {
    save(key, "one");
    String old = load(key).getEtag();
    get(dapr.saveState(STORE, key, old, "two", FIRST_WRITE));
    fails(dapr.saveState(STORE, key, old, "three", FIRST_WRITE), "ABORTED", "possible etag mismatch");
    fails(dapr.deleteState(STORE, key, old, FIRST_WRITE), "ABORTED", "possible etag mismatch");
    assertEquals("two", load(key).getValue());
    get(dapr.deleteState(STORE, key, load(key).getEtag(), FIRST_WRITE));
    assertNull(load(key).getValue());
  }

  @Test
  void stateFirstWrite() {
    State<String> mine = new State<>(key, "mine", null, FIRST_WRITE);
    get(dapr.saveBulkState(new SaveStateRequest(STORE).setStates(mine)));
    State<String> yours = new State<>(key, "yours", null, FIRST_WRITE);
    fails(dapr.saveBulkState(new SaveStateRequest(STORE).setStates(yours)), "ABORTED", "");
    assertEquals("mine", load(key).getValue());
  }

  @Test
  void stateTransaction() {
    save(key + "-old", "old");
    get(dapr.executeStateTransaction(STORE, List.of(
        new TransactionalStateOperation<>(OperationType.UPSERT, new State<>(key + "-new", "new", "")),
        new TransactionalStateOperation<>(OperationType.DELETE, new State<>(key + "-old")))));
    assertEquals("new", load(key + "-new").getValue());
    assertNull(load(key + "-old").getValue());
  }

  @Test
  void stateTransactionIsAtomic() {
    save(key, "one");
    String old = load(key).getEtag();
    save(key, "two");
    fails(dapr.executeStateTransaction(STORE, List.of(
        new TransactionalStateOperation<>(OperationType.UPSERT, new State<>(key + "-new", "new", "")),
        new TransactionalStateOperation<>(OperationType.UPSERT, new State<>(key, "three", old, FIRST_WRITE)))),
        "ABORTED", "");
    assertNull(load(key + "-new").getValue());
    assertEquals("two", load(key).getValue());
  }

  @Test
  void stateTtl() throws Exception {
    get(dapr.saveState(STORE, key, null, "brief", Map.of("ttlInSeconds", "1"), null));
    State<String> state = load(key);
    assertEquals("brief", state.getValue());
    assertNotNull(state.getMetadata().get("ttlExpireTime"));
    until(key + " is gone", () -> load(key).getValue() == null);
  }

  @Test
  void stateUnknownStore() {
    var error = fails(dapr.getState("nowhere", key, String.class), "INVALID_ARGUMENT",
        "state store nowhere is not found");
    assertEquals("DAPR_STATE_NOT_FOUND", Stage.reason(error));
  }

  @Test
  void stateKeyWithSeparator() {
    var error = fails(dapr.saveState(STORE, "a||b", "x"), "INVALID_ARGUMENT", "");
    assertEquals("DAPR_STATE_ILLEGAL_KEY", Stage.reason(error));
  }

  @Test
  void stateSurvivesKill() throws Exception {
    try (DaprClient victim = Stage.run("victim", Map.of()).builder().build()) {
      get(victim.saveState(STORE, key, "kept"));
    }
    assertEquals(-9, Stage.ask("/kill", Map.of("appId", "victim")).get("status").asInt());
    try (DaprClient heir = Stage.run("victim", Map.of()).builder().build()) {
      assertEquals("kept", get(heir.getState(STORE, key, String.class)).getValue());
    }
  }
}
