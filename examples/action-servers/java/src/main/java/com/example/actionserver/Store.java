package com.example.actionserver;

import io.grpc.Status;
import io.grpc.StatusException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;

/** A SQLite file with the effects and what is known of the calls. One transaction at a time. */
final class Store implements AutoCloseable {
  private static final String[] TABLES = {
    "CREATE TABLE IF NOT EXISTS epochs (saga_uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS marks (key TEXT PRIMARY KEY, mark TEXT NOT NULL, answer BLOB NOT NULL)",
  };

  enum Mark {
    DONE,
    FAILED,
    UNDO_FAILED,
    UNDONE
  }

  /** A mark, and what the do answered. */
  record Known(Mark mark, byte[] answer) {}

  interface Work<T> {
    T apply(Connection db) throws Exception;
  }

  private final Connection db;

  Store(String file, String... tables) throws SQLException {
    db = DriverManager.getConnection("jdbc:sqlite:" + file);
    run("PRAGMA journal_mode = WAL");
    run("PRAGMA synchronous = FULL");
    for (String table : TABLES) {
      run(table);
    }
    for (String table : tables) {
      run(table);
    }
  }

  /** A StatusException is an answer like any other, and commits: the epoch must stay. Anything else is rolled back. */
  synchronized <T> T inTransaction(Work<T> work) throws StatusException {
    try {
      run("BEGIN IMMEDIATE");
      try {
        T answer = work.apply(db);
        run("COMMIT");
        return answer;
      } catch (StatusException refusal) {
        run("COMMIT");
        throw refusal;
      } catch (Exception fault) {
        run("ROLLBACK");
        throw fault;
      }
    } catch (StatusException refusal) {
      throw refusal;
    } catch (Exception fault) {
      throw Status.UNAVAILABLE.withDescription(fault.toString()).withCause(fault).asException();
    }
  }

  /** Takes back what the work has changed when it throws. */
  <T> T effect(Work<T> work) throws Exception {
    run("SAVEPOINT effect");
    try {
      return work.apply(db);
    } catch (Exception fault) {
      run("ROLLBACK TO effect");
      throw fault;
    } finally {
      run("RELEASE effect");
    }
  }

  /** Refuses a call whose epoch is below the highest seen for its saga. */
  void rememberEpoch(String sagaUid, long epoch) throws SQLException, StatusException {
    try (var query = db.prepareStatement("SELECT epoch FROM epochs WHERE saga_uid = ?")) {
      query.setString(1, sagaUid);
      var row = query.executeQuery();
      if (row.next() && row.getLong(1) > epoch) {
        throw Status.FAILED_PRECONDITION
            .withDescription("Epoch " + epoch + " is stale: " + row.getLong(1) + " has been seen.")
            .asException();
      }
    }
    try (var insert = db.prepareStatement("INSERT OR REPLACE INTO epochs VALUES (?, ?)")) {
      insert.setString(1, sagaUid);
      insert.setLong(2, epoch);
      insert.executeUpdate();
    }
  }

  /** Null for a key that was never seen, or had no effect so far. */
  Known known(String key) throws SQLException {
    try (var query = db.prepareStatement("SELECT mark, answer FROM marks WHERE key = ?")) {
      query.setString(1, key);
      var row = query.executeQuery();
      return row.next() ? new Known(Mark.valueOf(row.getString(1)), row.getBytes(2)) : null;
    }
  }

  void remember(String key, Mark mark, byte[] answer) throws SQLException {
    try (var insert = db.prepareStatement("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)")) {
      insert.setString(1, key);
      insert.setString(2, mark.name());
      insert.setBytes(3, answer);
      insert.executeUpdate();
    }
  }

  @Override
  public synchronized void close() throws SQLException {
    db.close();
  }

  private void run(String sql) throws SQLException {
    try (var statement = db.createStatement()) {
      statement.execute(sql);
    }
  }
}
