/*
 * The refresh protocol of spotconn: processes that share one stored connection, the database and Spotify.
 *
 * Each rule of the protocol can be taken out with -DWITHOUT_<RULE>; each fault is let in with -D<FAULT>=<how often>.
 * proofs/README.md lists both, and proofs/check.py runs the configurations.
 */

/* ---- sizes ------------------------------------------------------------------------------------------------- */

#ifndef N
#define N 2                     /* processes */
#endif
#ifndef LEASE
#define LEASE 1                 /* ticks; a request that may still be sent also ends within this */
#endif
#ifndef SENDS
#define SENDS 2                 /* requests that each process may send */
#endif
#define NOBODY 255
#define ENDED 0                 /* an expires_at that has passed, or that is not believed */
#define MAX_RT 12               /* refresh tokens, numbered in the order in which they are issued */
#define MAX_AUTH 5              /* authorizations, numbered in the order in which they are given */

/* How often each fault may happen. */
#ifndef CRASH
#define CRASH 0                 /* a process dies with all that it knows */
#endif
#ifndef FREEZE
#define FREEZE 0                /* a process stands still while time goes on */
#endif
#ifndef LOST_ANSWER
#define LOST_ANSWER 0           /* Spotify acts and its answer is lost */
#endif
#ifndef LOST_ACK
#define LOST_ACK 0              /* the database commits and the process hears of an error */
#endif
#ifndef FALSE_REFUSAL
#define FALSE_REFUSAL 0         /* invalid_grant for a good refresh token */
#endif
#ifndef REVOKE
#define REVOKE 0                /* the user removes the app's access */
#endif
#ifndef DISCONNECT
#define DISCONNECT 0
#endif
#ifndef RECONNECT
#define RECONNECT 0
#endif
#ifndef FOREIGN_END
#define FOREIGN_END 0           /* a foreign writer sets expires_at */
#endif
#ifndef FOREIGN_TOKEN
#define FOREIGN_TOKEN 0         /* a foreign writer stores another refresh token under the same times */
#endif
#ifndef FOREIGN_INSERT
#define FOREIGN_INSERT 0        /* a foreign writer deletes the row and inserts it again */
#endif
#ifndef STALE_ROW
#define STALE_ROW 0             /* a foreign writer stores a whole row that it read earlier */
#endif
#ifndef REKEY
#define REKEY 0                 /* at most once: the stored texts change, the tokens inside stay */
#endif
#ifndef FAILOVER
#define FAILOVER 0              /* the database returns to an earlier state */
#endif
#ifndef CLOCK_BACK
#define CLOCK_BACK 0            /* the clock of the database steps back */
#endif
#ifndef CLOCK_FORWARD
#define CLOCK_FORWARD 0
#endif

/*
 * The apps. The first authorization is of app A, and so are all processes and all that comes later. With one of these
 * switches the model has apps; without them nothing of it takes room in a state.
 * WRONG_APP: the last process knows only app B. BOTH_APPS: the first one knows both. UNKNOWN_APP: the state names none.
 * NEW_APP: a later authorization may be of either app.
 */
#ifndef FILL_APP
#define FILL_APP 0              /* the operator fills in the app that the state does not name */
#endif
#if defined(WRONG_APP) || defined(BOTH_APPS) || defined(UNKNOWN_APP) || defined(NEW_APP) || FILL_APP
#define APPS
#endif

#ifndef ONLY
#define ONLY 0                  /* the number of the one invariant to look at; 0: all of them */
#endif

/* ---- the world --------------------------------------------------------------------------------------------- */

/* A stored text stands for a token and a ciphertext: rekey makes another text of the same token. */
#define TEXT(number) ((number) << 1)
#define REKEYED(text) ((text) | 1)
#define TOKEN(text) ((text) >> 1)
#define AUTH(text) auth_of[TOKEN(text)]

/* public.spotify_connections. Access tokens are numbered as they are issued, so a later one has the larger number. */
typedef Connection {
    bit here;
    byte rt, at;                /* stored texts of refresh token and access token */
    byte ends;                  /* expires_at: the number of the access token that it belongs to, or ENDED */
    byte connected;             /* connected_at */
}
Connection row, old_row;

/* spotconn.refresh_state. */
typedef RefreshState {
    byte text;                  /* the refresh token it speaks of */
    byte holder, left;          /* the lease, and the ticks that are left of it by the clock of the database */
    byte saves;
    byte family;                /* the text with which this family of refresh tokens began */
    byte refused;
    bit lapsed;                 /* a lease was taken over that its holder had not ended; no outcome yet */
    bit recent;                 /* saved_at is less than a minute ago */
#ifdef APPS
    byte app;                   /* the app of this refresh token, or UNKNOWN */
    byte refused_by;            /* the set of apps that have refused it while its app was unknown */
    bit told;                   /* for the proof only: the library has learned the app */
    bit right;                  /* for the proof only: its own app has refused it since a refusal was last due */
#endif
}
RefreshState state, old_state;
#define NEVER 0
#define PROVISIONAL 1           /* refused, and a second opinion is not due */
#define DUE 2                   /* a second opinion is due */
#define FINAL 3
#define UNKNOWN 0
#define APP_A 1                 /* a set of apps is a sum of these */
#define APP_B 2

/* Spotify. Without ROTATE a refresh token stays the same, and its answers repeat it. */
byte current[MAX_AUTH];         /* the refresh token that works, by authorization */
bit revoked[MAX_AUTH];
byte auth_of[MAX_RT];
#ifdef APPS
byte app_of[MAX_AUTH];
#endif
byte last_rt, last_at, last_auth;

/* The processes. */
#define IDLE 0
#define ASKING 1                /* begin_refresh is on its way to the database */
#define ANSWERED 2              /* the turn is granted, and the answer on its way to the process */
#define IN_FLIGHT 3             /* Spotify is asked */
#define NOT_SENT 0
#define SENT 1
#define GRANT 2                 /* arrived, not read */
#define REFUSAL 3
#define LOST 4
bit alive[N], frozen[N];
byte phase[N], answer[N];
byte age[N];                    /* ticks since the lease was asked for */
byte sends[N];
byte seen[N];                   /* the access token found wanting */
byte turn_rt[N], turn_at[N], turn_connected[N], turn_family[N], turn_saves[N];
#ifdef APPS
byte turn_apps[N];              /* the apps with which Spotify is asked: that of the state, or all that are known */
#endif
bit turn_back[N];               /* begin_refresh has shown a row that was brought back */
byte got_rt[N], got_at[N];

/* The last grant that a process got: not saved yet, or remembered. */
bit unsaved[N];
byte base_rt[N], base_at[N];    /* what the row must hold and, for the access token, held */
byte known_rt[N], known_at[N], known_connected[N], known_family[N], known_saves[N];
int replaced[N];                /* a set of the refresh tokens that this process has replaced */

/* What only the proof knows. */
bit covered[N];                 /* the lease of this process stands */
bit taken[N];                  /* a fault or another writer took the lease: this process cannot know */
bit slept[N];                   /* frozen for an hour */
bit excused[MAX_AUTH];          /* strict rotation has lost this authorization: no process alive knows its token */
bit forged;                     /* a foreign writer has set the end of the stored access token */
byte stood;                     /* the ticks that this lease has stood for */
byte crashes, freezes, lost_answers, lost_acks, false_refusals;
hidden byte i, j, k;
hidden byte yes, wrote, kept, due;

/* ---- what the rules look at -------------------------------------------------------------------------------- */

/* Identity is content. The other way is to take expires_at for a version of the row. */
#ifdef WITHOUT_CONTENT
#define IDENTITY row.ends
byte turn_ends[N], base_ends[N];
#define REMEMBER_IDENTITY(p) turn_ends[p] = row.ends
#define TURN_IDENTITY(p) turn_ends[p]
#define STILL_THE_SAME(p) (row.here && row.ends == base_ends[p])
#define TAKE_IDENTITY(p) base_ends[p] = turn_ends[p]
#else
#define IDENTITY row.rt
#define REMEMBER_IDENTITY(p) skip
#define TURN_IDENTITY(p) turn_rt[p]
#define STILL_THE_SAME(p) (row.here && row.rt == base_rt[p])
#define TAKE_IDENTITY(p) skip
#endif

/* The lease. Where more than its length is left, the clock has stepped back. */
#ifdef WITHOUT_LEASE
#define STANDS(left) false
#elif defined(WITHOUT_VOID_LEASE)
#define STANDS(left) (state.text == IDENTITY && state.holder != NOBODY && (left) > 0)
#else
#define STANDS(left) (state.text == IDENTITY && state.holder != NOBODY && (left) > 0 && (left) <= LEASE)
#endif

/* The clock is read after the lock, or when the statement begins, which is as long ago as the process asked. */
#ifdef WITHOUT_TIME_AFTER_LOCK
#define WAITED(p) age[p]
#else
#define WAITED(p) 0
#endif

/* The app of the refresh token, where there are apps. */
#ifdef APPS
#ifdef WRONG_APP
#define LAST_KNOWS APP_B
#else
#define LAST_KNOWS APP_A
#endif
#ifdef BOTH_APPS
#define FIRST_KNOWS (APP_A | APP_B)
#else
#define FIRST_KNOWS APP_A
#endif
#define KNOWS(p) ((p) == N - 1 -> LAST_KNOWS : ((p) == 0 -> FIRST_KNOWS : APP_A))
#define APP_OF(auth) app_of[auth]
#define RIGHT_APP APP_OF(AUTH(row.rt))

/* A process without the app that the state names gets no turn; one with it asks with that app alone. */
#ifdef WITHOUT_APP
#define NAMED_APP UNKNOWN
#else
#define NAMED_APP state.app
#endif
#define OTHER_APP(p) (state.text == IDENTITY && NAMED_APP != UNKNOWN && !(KNOWS(p) & NAMED_APP))
#define APPS_TO_ASK(p) (NAMED_APP != UNKNOWN -> NAMED_APP : KNOWS(p))

/* Where the app is unknown, a refusal speaks to those who know no app but the ones that refused. */
#ifdef WITHOUT_REFUSED_BY
#define COUNTS_FOR(p) true
#else
#define COUNTS_FOR(p) (state.app != UNKNOWN || !(KNOWS(p) & ~state.refused_by))
#endif

/* A late save or the operator may have named the app since the turn: a refusal of others is then none. */
#ifdef WITHOUT_REFUSER
#define COUNTS_AT_ALL(p) true
#else
#define COUNTS_AT_ALL(p) (state.app == UNKNOWN || (turn_apps[p] & state.app))
#endif

/* A second opinion is one of apps that gave a first: with a new app the count begins anew. */
#ifdef WITHOUT_COUNTS_ANEW
#define SECOND(p) true
#else
#define SECOND(p) (state.app != UNKNOWN || !(turn_apps[p] & ~state.refused_by))
#endif

/* And it is theirs alone. Where it counted for the others too, one app could make their first refusal final, or put off
 * for ever that they are heard again. */
#ifdef WITHOUT_OWN_OPINION
#define REFUSED_BEFORE state.refused_by
#else
#define REFUSED_BEFORE (due -> 0 : state.refused_by)
#endif

/* A final refusal of other apps says nothing to a process that knows the right one. */
#define SPEAKS_OF_OWN_APP (state.app != UNKNOWN || (state.refused_by & RIGHT_APP))
#else
#define APP_OF(auth) UNKNOWN
#define OTHER_APP(p) false
#define COUNTS_FOR(p) true
#define COUNTS_AT_ALL(p) true
#define SECOND(p) true
#define SPEAKS_OF_OWN_APP true
#endif

/* The row holds another access token than the one found wanting, and one that has not ended. */
#define SUPERSEDED(p) (row.at != seen[p] && row.ends != ENDED)
#define REFUSED(p) (state.text == IDENTITY && (state.refused == PROVISIONAL || state.refused == FINAL) && COUNTS_FOR(p))
#ifdef STORM
#define JUST_SAVED (state.text == IDENTITY && state.recent)
#else
#define JUST_SAVED false
#endif
#ifdef WITHOUT_JUST_SAVED
#define SPARED false
#else
#define SPARED JUST_SAVED
#endif
#define MAY_REFRESH(p) (row.here && !SUPERSEDED(p) && !REFUSED(p) && !SPARED && !STANDS(state.left + WAITED(p)) && \
    !OTHER_APP(p))
#ifdef WITHOUT_LOCKED_ROW
bit could_refresh[N];
#define LOOK_BEFORE_LOCK(p) could_refresh[p] = MAY_REFRESH(p)
#define DECIDED(p) (row.here && could_refresh[p])
#else
#define LOOK_BEFORE_LOCK(p) skip
#define DECIDED(p) MAY_REFRESH(p)
#endif

/* A process may send while the whole request fits into its lease, counted from before it asked for it. */
#ifdef WITHOUT_DEADLINE_CHECK
#define IN_TIME(p) true
#else
#define IN_TIME(p) (age[p] < LEASE)
#endif

/* Where the row holds another access token than at the grant, only one that ends later is saved. */
#ifdef WITHOUT_LATER_END
#define ACCESS_TOKEN_WINS(p) true
#else
#define ACCESS_TOKEN_WINS(p) (row.at == base_at[p] || known_at[p] > row.ends)
#endif

#ifdef WITHOUT_CAS
#define MAY_SAVE(p) true
#else
#define MAY_SAVE(p) STILL_THE_SAME(p)
#endif

#ifdef WITHOUT_LAPSED
#define LAPSED false
#else
#define LAPSED state.lapsed
#endif

/* A save ends the lease of its own turn. */
#ifdef WITHOUT_OWN_LEASE
#define ENDS_LEASE(p) true
#else
#define ENDS_LEASE(p) (state.holder == p)
#endif

/* The tokens that a process has replaced, by themselves and not by their stored texts, which a rekey changes. */
#ifdef WITHOUT_PLAIN
#define NAME(text) (text)
#else
#define NAME(text) TOKEN(text)
#endif
#define REPLACED(p, text) ((replaced[p] >> NAME(text)) & 1)

/* A row that a failover or a stale upsert brought back. */
#ifdef WITHOUT_GONE_BACK
#define BROUGHT_BACK(p) false
#else
#ifdef WITHOUT_FAMILY
#define SAME_FAMILY(p) true
#else
#define SAME_FAMILY(p) (state.family == known_family[p])
#endif
#ifdef WITHOUT_SAVES
#define FEWER_SAVES(p) false
#else
#define FEWER_SAVES(p) (state.text == row.rt && SAME_FAMILY(p) && state.saves < known_saves[p])
#endif
#ifdef WITHOUT_REPLACED
#define HAS_REPLACED(p) false
#else
#define HAS_REPLACED(p) REPLACED(p, row.rt)
#endif
#define SAME_AUTHORIZATION(p) (row.here && known_at[p] && row.connected == known_connected[p])
#define BROUGHT_BACK(p) (SAME_AUTHORIZATION(p) && (FEWER_SAVES(p) || HAS_REPLACED(p)))
#endif

/* ---- invariants -------------------------------------------------------------------------------------------- */

hidden byte I1_one_request, I2_nothing_newer_overwritten, I3_only_good_grant_kept, I4_final_refusal_is_true,
    I5_lease_outlasts_request, I6_lease_ends_in_time, I7_no_request_with_a_replaced_token, I8_one_refresh_a_minute,
    I9_turn_for_the_own_app, I10_refusal_by_the_own_app, I11_own_app_is_heard;
#define HOLDS(number, name, condition) name = ((condition) || (ONLY && ONLY != number)); assert(name)

#define GOOD(token, auth) (!revoked[auth] && current[auth] == (token))

/* A process alive has this refresh token, and will save it where the row does not hold it. */
inline look_who_keeps(token) {
    kept = (row.here && TOKEN(row.rt) == token);
    i = 0;
    do
    :: i < N ->
        if
        :: alive[i] && answer[i] == GRANT && got_rt[i] == token -> kept = 1
        :: alive[i] && known_rt[i] == token && (unsaved[i] || BROUGHT_BACK(i)) -> kept = 1
        :: alive[i] && known_rt[i] == token && !unsaved[i] && !BROUGHT_BACK(i) ->
            /* Another process first puts back the token that this one has replaced. */
            k = 0;
            do
            :: k < N ->
                kept = kept || (alive[k] && BROUGHT_BACK(k) && REPLACED(i, TEXT(known_rt[k])));
                k++
            :: else -> break
            od
        :: else
        fi;
        i++
    :: else -> break
    od
}

inline only_good_grant_kept() {
    if
    :: row.here && !revoked[AUTH(row.rt)] && !excused[AUTH(row.rt)] ->
        look_who_keeps(current[AUTH(row.rt)]);
        HOLDS(3, I3_only_good_grant_kept, kept)
    :: else
    fi
}

/* After a fault: what no process alive knows is lost, whatever a library does. */
inline excuse_what_is_lost() {
    if
    :: row.here && !revoked[AUTH(row.rt)] ->
        look_who_keeps(current[AUTH(row.rt)]);
        if
        :: !kept -> excused[AUTH(row.rt)] = 1
        :: else
        fi
    :: else
    fi
}

/* A failover, a step of the clock or another token in the row ends what a lease promised. */
inline take_leases() {
    i = 0;
    do
    :: i < N -> taken[i] = taken[i] || covered[i]; covered[i] = 0; i++
    :: else -> break
    od
}

/* No other request with this refresh token is in flight while its holder lives and its lease stands. */
inline one_request(p) {
    yes = 1;
    i = 0;
    do
    :: i < N ->
        if
        :: i != p && !taken[p] && alive[i] && covered[i] && phase[i] == IN_FLIGHT &&
            TOKEN(turn_rt[i]) == TOKEN(turn_rt[p]) -> yes = 0
        :: else
        fi;
        i++
    :: else -> break
    od;
    HOLDS(1, I1_one_request, yes)
}

/* The refresh token is of no use, and no process alive holds a good one of the same authorization. */
inline final_refusal_is_true(text) {
    yes = !GOOD(TOKEN(text), AUTH(text));
    i = 0;
    do
    :: i < N ->
        if
        :: !excused[AUTH(text)] && alive[i] && !slept[i] && known_at[i] &&
            auth_of[known_rt[i]] == AUTH(text) && GOOD(known_rt[i], AUTH(text)) -> yes = 0
        :: !excused[AUTH(text)] && alive[i] && !slept[i] && answer[i] == GRANT &&
            auth_of[got_rt[i]] == AUTH(text) && GOOD(got_rt[i], AUTH(text)) -> yes = 0
        :: else
        fi;
        i++
    :: else -> break
    od;
    HOLDS(4, I4_final_refusal_is_true, yes)
}

/* A turn is for a process that knows the app, as far as the library has learned it. */
inline turn_for_the_own_app(p) {
#ifdef APPS
    HOLDS(9, I9_turn_for_the_own_app, !state.told || TOKEN(state.text) != TOKEN(row.rt) || (KNOWS(p) & RIGHT_APP))
#else
    skip
#endif
}

/* Where the app is known, only a refusal of that app is one. */
inline refusal_by_the_own_app(p) {
#ifdef APPS
    HOLDS(10, I10_refusal_by_the_own_app, !state.told || (turn_apps[p] & RIGHT_APP));
    state.right = state.right || (turn_apps[p] & RIGHT_APP)
#else
    skip
#endif
}

/* A process that knows the right app is not turned away for another, nor for what others were refused. */
inline own_app_is_heard(p) {
#ifdef APPS
    if
    :: row.here && !SUPERSEDED(p) && (KNOWS(p) & RIGHT_APP) ->
        HOLDS(9, I9_turn_for_the_own_app, !OTHER_APP(p));
        HOLDS(11, I11_own_app_is_heard, !REFUSED(p) || state.right)
    :: else
    fi
#else
    skip
#endif
}

/* ---- the functions of the database, each one transaction -------------------------------------------------------- */

inline no_lease() { state.holder = NOBODY; state.left = 0 }

/* The state names this app from now on, and no refusal. */
inline name_app(name) {
#ifdef APPS
    state.app = name; state.told = (name != UNKNOWN); state.refused_by = 0; state.right = 0
#else
    skip
#endif
}

inline end_flight(p) {
    phase[p] = IDLE; answer[p] = NOT_SENT; age[p] = 0; seen[p] = 0; covered[p] = 0; taken[p] = 0;
    turn_rt[p] = 0; turn_at[p] = 0; turn_connected[p] = 0; turn_family[p] = 0; turn_saves[p] = 0; turn_back[p] = 0;
#ifdef APPS
    turn_apps[p] = 0;
#endif
    got_rt[p] = 0; got_at[p] = 0
}

inline begin_refresh(p) {
    if
    :: DECIDED(p) ->                                                        /* GRANTED */
        turn_for_the_own_app(p);
        if
        :: state.text != IDENTITY ->
            /* Another writer's refresh token: nothing is known of it, and a family of its own begins. */
            state.text = IDENTITY; state.family = row.rt; state.refused = NEVER; state.recent = 0; state.lapsed = 0;
#ifdef WITHOUT_APP_OF_ONE_TOKEN
            state.told = 0;
#else
            name_app(UNKNOWN);
#endif
            no_lease()
        :: else
        fi;
        state.lapsed = state.lapsed || state.holder != NOBODY;
        HOLDS(8, I8_one_refresh_a_minute, !JUST_SAVED);
        state.holder = p;
        state.left = LEASE - WAITED(p);
        stood = 0;
        covered[p] = (state.left > 0);
        REMEMBER_IDENTITY(p);
        turn_rt[p] = row.rt; turn_at[p] = row.at; turn_connected[p] = row.connected;
        turn_family[p] = state.family; turn_saves[p] = state.saves;
#ifdef APPS
        turn_apps[p] = APPS_TO_ASK(p);
#endif
#ifdef WITHOUT_UNSAVED_FIRST
        turn_back[p] = !unsaved[p] && BROUGHT_BACK(p);
#else
        turn_back[p] = BROUGHT_BACK(p);
#endif
        phase[p] = ANSWERED
    :: else ->                                                              /* any other answer ends the flight */
        own_app_is_heard(p);
        if
        :: row.here && !SUPERSEDED(p) && !REFUSED(p) && STANDS(state.left) ->  /* BUSY */
            HOLDS(6, I6_lease_ends_in_time, stood <= 2 * LEASE)
        :: else
        fi;
        end_flight(p)
    fi
}

inline end_own_lease(p) {
    if
    :: state.holder == p && state.text == TURN_IDENTITY(p) -> no_lease()
    :: else
    fi
}

inline record_refusal(p) {
    refusal_by_the_own_app(p);
    due = (state.refused == DUE);
#ifdef WITHOUT_PROVISIONAL
    state.refused = FINAL;
#else
    /* The holder of a lapsed lease may be about to save the successor, so that refusal does not count. */
    state.refused = (due && SECOND(p) && !LAPSED -> FINAL : PROVISIONAL);
#endif
#ifdef APPS
    /* An app that had not refused before is perhaps another one's: it says nothing of the lapsed grant. */
    state.lapsed = (state.app == UNKNOWN && (turn_apps[p] & ~state.refused_by) -> state.lapsed : 0);
    state.refused_by = (state.app == UNKNOWN -> REFUSED_BEFORE | turn_apps[p] : 0);
#else
    state.lapsed = 0;
#endif
    if
    :: state.refused == FINAL && SPEAKS_OF_OWN_APP -> final_refusal_is_true(turn_rt[p])
    :: else
    fi
}

/* Only the holder of the lease records a refusal, and only of the refresh token that is still stored. */
inline refuse(p) {
    if
    :: row.here && IDENTITY == TURN_IDENTITY(p) && state.text == TURN_IDENTITY(p) && state.holder == p ->
        no_lease();
        if
        :: COUNTS_AT_ALL(p) -> record_refusal(p)
        :: else
        fi
    :: else
    fi
}

/* The state names the app that got the grant, so a remembered grant carries it. */
inline granted_with(p) {
#ifdef WITHOUT_APP_WRITTEN
    state.told = 1
#else
    name_app(APP_OF(auth_of[known_rt[p]]))
#endif
}

/* finish_refresh, for a grant just got and for a remembered one alike. */
inline finish_refresh(p) {
    wrote = 0;
    if
    :: known_rt[p] != TOKEN(row.rt) ->
        HOLDS(2, I2_nothing_newer_overwritten, row.here && (AUTH(row.rt) < auth_of[known_rt[p]] ||
            (AUTH(row.rt) == auth_of[known_rt[p]] && TOKEN(row.rt) < known_rt[p])));
        row.here = 1;
        row.rt = TEXT(known_rt[p]);
        wrote = 1
    :: else
    fi;
    if
    :: ACCESS_TOKEN_WINS(p) ->
        HOLDS(2, I2_nothing_newer_overwritten, forged || TOKEN(row.at) <= known_at[p]);
        row.at = TEXT(known_at[p]); row.ends = known_at[p]; forged = 0;
        wrote = 1
    :: else
    fi;
    if
    :: state.text != IDENTITY -> state.text = IDENTITY; no_lease()
    :: state.text == IDENTITY && ENDS_LEASE(p) -> no_lease()
    :: else
    fi;
    if
    :: wrote ->
        state.family = known_family[p];
        state.saves = (state.saves + 1 > known_saves[p] -> state.saves + 1 : known_saves[p]);
        state.refused = NEVER; state.lapsed = 0;
        granted_with(p);
        state.recent = 1
    :: else
    fi
}

inline forget_base(p) { unsaved[p] = 0; base_rt[p] = 0; base_at[p] = 0 }

inline save(p) {
    if
    :: MAY_SAVE(p) ->
        finish_refresh(p);
        if
        :: lost_acks < LOST_ACK -> lost_acks++
        :: known_saves[p] = (wrote -> state.saves : known_saves[p]); forget_base(p)
        fi
    :: else ->
        if
#ifndef WITHOUT_SECOND_LOOK
        :: row.here && row.rt != base_rt[p] && TOKEN(row.rt) == TOKEN(base_rt[p]) -> base_rt[p] = row.rt
#endif
#ifndef WITHOUT_REMEMBERED_UNSAVED
        :: BROUGHT_BACK(p) && TOKEN(row.rt) != TOKEN(base_rt[p]) -> base_rt[p] = row.rt; base_at[p] = 0
#endif
        :: else ->                                                          /* the row is used */
            forget_base(p);
#ifdef WITHOUT_REMEMBERED_UNSAVED
            known_rt[p] = 0; known_at[p] = 0;
#endif
            only_good_grant_kept()
        fi
    fi
}

/* ---- a process --------------------------------------------------------------------------------------------- */

/* An answer that has arrived is read, whatever the clock says. */
inline read_grant(p) {
    known_rt[p] = got_rt[p]; known_at[p] = got_at[p];
    replaced[p] = (known_connected[p] == turn_connected[p] -> replaced[p] : 0);
    if
    :: got_rt[p] != TOKEN(turn_rt[p]) -> replaced[p] = replaced[p] | (1 << NAME(turn_rt[p]))
    :: else
    fi;
    known_connected[p] = turn_connected[p]; known_family[p] = turn_family[p]; known_saves[p] = turn_saves[p] + 1;
    base_rt[p] = turn_rt[p]; base_at[p] = turn_at[p]; TAKE_IDENTITY(p);
    unsaved[p] = 1;
    end_flight(p)
}

proctype process(byte p) provided (alive[p] && !frozen[p]) {
    do
    /* An unsaved grant is saved, or tried to be: how often the database is away is for the order of steps to say. */
    :: atomic { unsaved[p] -> save(p) }

    /* Remembered grants are compared with their rows after each lost connection. */
    :: atomic {
        phase[p] == IDLE && !unsaved[p] && BROUGHT_BACK(p) ->
        unsaved[p] = 1; base_rt[p] = row.rt; base_at[p] = 0
    }

    /* A flight: the row is read, then a turn is asked for. */
#ifdef WITHOUT_UNSAVED_FIRST
    :: atomic { phase[p] == IDLE && row.here && sends[p] < SENDS ->
#else
    :: atomic { phase[p] == IDLE && !unsaved[p] && row.here && sends[p] < SENDS ->
#endif
        seen[p] = row.at; phase[p] = ASKING; age[p] = 0; LOOK_BEFORE_LOCK(p)
    }
    :: atomic { phase[p] == ASKING -> begin_refresh(p) }

    /* The database has committed; its answer may come late, or not at all. */
    :: atomic { phase[p] == ANSWERED && lost_acks < LOST_ACK -> lost_acks++; end_flight(p) }
    :: atomic {
        phase[p] == ANSWERED ->
#ifdef WITHOUT_DEADLINE_FROM_ASKING
        age[p] = 0;
#endif
        if
        :: turn_back[p] ->
            /* The remembered grant has its say before Spotify is asked. */
            unsaved[p] = 1; base_rt[p] = turn_rt[p]; base_at[p] = 0; end_flight(p)
        :: !turn_back[p] && IN_TIME(p) ->
            HOLDS(7, I7_no_request_with_a_replaced_token, !REPLACED(p, turn_rt[p]));
            one_request(p);
            sends[p]++;
            phase[p] = IN_FLIGHT; answer[p] = SENT
        :: !turn_back[p] && !IN_TIME(p) -> end_own_lease(p); end_flight(p)
        fi
    }

#ifdef WITHOUT_ANSWER_COUNTS
    :: atomic { answer[p] == GRANT && age[p] < LEASE -> read_grant(p) }
    :: atomic { answer[p] == GRANT && age[p] >= LEASE -> end_own_lease(p); end_flight(p); only_good_grant_kept() }
#else
    :: atomic { answer[p] == GRANT -> read_grant(p) }
#endif
    :: atomic { answer[p] == REFUSAL -> refuse(p); end_flight(p) }
    /* The timeout of the request, or a passing failure. */
    :: atomic { phase[p] == IN_FLIGHT && (answer[p] == SENT || answer[p] == LOST) -> end_own_lease(p); end_flight(p) }
    od
}

/* ---- Spotify ----------------------------------------------------------------------------------------------- */

inline issue(p) {
    last_at++;
    got_at[p] = last_at;
#ifdef ROTATE
    last_rt++;
    auth_of[last_rt] = AUTH(turn_rt[p]);
    current[AUTH(turn_rt[p])] = last_rt;
    got_rt[p] = last_rt
#else
    got_rt[p] = TOKEN(turn_rt[p])
#endif
}

/* A process that may ask with several apps asks with each; one request stands for all of them. */
#ifdef APPS
#define ASKS_RIGHT(p) (turn_apps[p] & APP_OF(AUTH(turn_rt[p])))
#else
#define ASKS_RIGHT(p) true
#endif
#define ACCEPTED(p) (ASKS_RIGHT(p) && GOOD(TOKEN(turn_rt[p]), AUTH(turn_rt[p])))

proctype request(byte p) {
    do
    :: atomic { answer[p] == SENT && alive[p] && ACCEPTED(p) -> issue(p); answer[p] = GRANT }
    :: atomic {
        answer[p] == SENT && alive[p] && ACCEPTED(p) && lost_answers < LOST_ANSWER ->
        lost_answers++; issue(p); got_rt[p] = 0; got_at[p] = 0; answer[p] = LOST; excuse_what_is_lost()
    }
    :: atomic {
        answer[p] == SENT && alive[p] && ACCEPTED(p) && false_refusals < FALSE_REFUSAL ->
        false_refusals++; answer[p] = REFUSAL
    }
    :: atomic { answer[p] == SENT && alive[p] && !ACCEPTED(p) -> answer[p] = REFUSAL }
    /* The request of a process that died may still be carried out. */
    :: atomic {
        answer[p] == SENT && !alive[p] ->
        if
        :: ACCEPTED(p) -> issue(p)
        :: true
        fi;
        end_flight(p); excuse_what_is_lost()
    }

    :: atomic {
        alive[p] && crashes < CRASH ->
        crashes++; alive[p] = 0; frozen[p] = 0; forget_base(p);
        known_rt[p] = 0; known_at[p] = 0; known_connected[p] = 0; known_family[p] = 0; known_saves[p] = 0;
        replaced[p] = 0;
        if
        :: answer[p] == SENT
        :: else -> end_flight(p)
        fi;
        excuse_what_is_lost()
    }
    :: atomic { alive[p] && !frozen[p] && freezes < FREEZE -> freezes++; frozen[p] = 1 }
    :: atomic { alive[p] && frozen[p] -> frozen[p] = 0 }
    od
}

/* ---- time -------------------------------------------------------------------------------------------------- */

inline may_tick() {
    yes = 1;
    i = 0;
    do
    :: i < N ->
        if
        /* The timer of a process that runs ends its request before the lease ends. */
        :: alive[i] && !frozen[i] && phase[i] == IN_FLIGHT && age[i] + 1 >= LEASE -> yes = 0
        :: else
        fi;
        i++
    :: else -> break
    od
}

inline tick() {
    i = 0;
    do
    :: i < N ->
        if
        :: alive[i] && phase[i] != IDLE && age[i] < LEASE -> age[i]++
        :: else
        fi;
        i++
    :: else -> break
    od;
#if CLOCK_BACK
    if
    :: STANDS(state.left) && stood <= 2 * LEASE -> stood++
    :: else
    fi;
#endif
    if
    :: state.left == 1 ->
        i = 0;
        do
        :: i < N ->
            HOLDS(5, I5_lease_outlasts_request,
                !(alive[i] && !frozen[i] && covered[i] && phase[i] == IN_FLIGHT &&
                    (answer[i] == SENT || answer[i] == LOST)));
            covered[i] = 0;
            i++
        :: else -> break
        od
    :: else
    fi;
    state.left = (state.left > 0 -> state.left - 1 : 0);
    old_state.left = (old_state.left > 0 -> old_state.left - 1 : 0)
}

/* Within an hour a process that runs has saved what it has to save, and asked or not. */
inline may_pass_hour() {
    yes = 1;
    i = 0;
    do
    :: i < N ->
        if
        :: alive[i] && !frozen[i] && (phase[i] != IDLE || unsaved[i] || BROUGHT_BACK(i)) -> yes = 0
        :: else
        fi;
        i++
    :: else -> break
    od
}

inline pass_hour() {
    i = 0;
    do
    :: i < N ->
        slept[i] = slept[i] || (alive[i] && frozen[i]);
        /* Also of a turn that was granted while the refusals of others waited. */
        age[i] = (phase[i] != IDLE -> LEASE : age[i]);
        covered[i] = 0;
        i++
    :: else -> break
    od;
    state.left = 0; old_state.left = 0;
#ifdef APPS
    state.right = 0;
#endif
    state.refused = DUE
}

proctype time() {
    do
    :: atomic { true -> may_tick(); if :: yes -> tick() :: else fi }
    :: atomic {
        state.text == IDENTITY && state.refused == PROVISIONAL ->
        may_pass_hour();
        if :: yes -> pass_hour() :: else fi
    }
#ifdef STORM
    :: atomic { state.recent -> state.recent = 0 }
#endif
    od
}

/* ---- what others do to the row ------------------------------------------------------------------------------ */

/* What a reconnect, a disconnect or another token replaces is needed no longer. */
inline authorize() {
    if
    :: row.here -> excused[AUTH(row.rt)] = 1
    :: else
    fi;
    last_auth++; last_rt++; last_at++;
    auth_of[last_rt] = last_auth; current[last_auth] = last_rt;
#ifdef APPS
    if
    :: app_of[last_auth] = APP_A
#ifdef NEW_APP
    :: app_of[last_auth] = APP_B
#endif
    fi;
#endif
    row.rt = TEXT(last_rt); row.at = TEXT(last_at)
}

/* What a living process knows must find its way back after a failover. */
inline after_failover() {
    if
    :: row.here && !revoked[AUTH(row.rt)] && !excused[AUTH(row.rt)] ->
        yes = 0;
        i = 0;
        do
        :: i < N ->
            if
            :: alive[i] && (known_rt[i] == current[AUTH(row.rt)] || got_rt[i] == current[AUTH(row.rt)]) -> yes = 1
            :: else
            fi;
            i++
        :: else -> break
        od;
        if
        :: yes -> only_good_grant_kept()
        :: else -> excuse_what_is_lost()
        fi
    :: else
    fi
}

proctype others() {
    byte snapshots, failovers, stale_rows, ends, tokens, inserts, rekeys;
    byte disconnects, reconnects, revokes, backs, forwards;
#if FILL_APP
    byte fills;
#endif
    do
#if FAILOVER || STALE_ROW
    /* What a replica has when it is promoted, or a foreign writer when it read. */
    :: atomic {
        snapshots == 0 && row.here -> snapshots = 1;
        old_row.here = 1; old_row.rt = row.rt; old_row.at = row.at; old_row.ends = row.ends;
        old_row.connected = row.connected;
        old_state.text = state.text; old_state.holder = state.holder; old_state.left = state.left;
        old_state.saves = state.saves; old_state.family = state.family;
#ifdef APPS
        old_state.app = state.app; old_state.refused_by = state.refused_by;
        old_state.told = state.told; old_state.right = state.right;
#endif
        old_state.refused = state.refused; old_state.lapsed = state.lapsed
    }
#endif
#if FAILOVER
    :: atomic {
        snapshots == 1 && failovers < FAILOVER -> failovers++;
        row.here = 1; row.rt = old_row.rt; row.at = old_row.at; row.ends = old_row.ends;
        row.connected = old_row.connected;
        state.text = old_state.text; state.holder = old_state.holder; state.left = old_state.left;
        state.saves = old_state.saves; state.family = old_state.family;
        state.refused = old_state.refused; state.lapsed = old_state.lapsed;
#ifdef APPS
        state.app = old_state.app; state.refused_by = old_state.refused_by;
        state.told = old_state.told; state.right = old_state.right;
#endif
        take_leases();
        after_failover()
    }
#endif
#if STALE_ROW
    :: atomic {
        snapshots == 1 && stale_rows < STALE_ROW && row.here -> stale_rows++;
        if
        :: row.rt != old_row.rt -> take_leases()
        :: else
        fi;
        row.rt = old_row.rt; row.at = old_row.at; row.ends = old_row.ends; row.connected = old_row.connected;
        excuse_what_is_lost()
    }
#endif
#if FOREIGN_END
    :: atomic { ends < FOREIGN_END && row.here -> ends++; row.ends = ENDED; forged = 1 }
#endif
#if FOREIGN_TOKEN
    :: atomic {
        tokens < FOREIGN_TOKEN && row.here -> tokens++;
        authorize(); forged = 1; take_leases()
    }
#endif
#if FOREIGN_INSERT
    /* The row is the same as before. What hangs on it would be gone. */
    :: atomic {
        inserts < FOREIGN_INSERT && row.here -> inserts++;
#ifdef WITHOUT_STATE_ON_USER
        no_lease(); state.text = 0; state.saves = 0; state.family = 0; state.refused = NEVER; state.lapsed = 0
#endif
    }
#endif
#if REKEY
    /* Rekey locks the row, then looks for a lease; it carries the state to the new text. */
#ifdef WITHOUT_REKEY_LEASE
    :: atomic { rekeys == 0 && row.here ->
#else
    :: atomic { rekeys == 0 && row.here && !STANDS(state.left) ->
#endif
        rekeys = 1;
#ifndef WITHOUT_CARRY
        state.text = (state.text == row.rt -> REKEYED(row.rt) : state.text);
#endif
        row.rt = REKEYED(row.rt); row.at = REKEYED(row.at)
    }
#endif
#if DISCONNECT
    :: atomic {
        disconnects < DISCONNECT && row.here -> disconnects++;
        excused[AUTH(row.rt)] = 1;
        row.here = 0; row.rt = 0; row.at = 0; row.ends = 0; row.connected = 0; forged = 0;
        no_lease(); state.text = 0; state.saves = 0; state.family = 0; state.refused = NEVER; state.lapsed = 0;
        name_app(UNKNOWN);
        take_leases()
    }
#endif
#if RECONNECT
    :: atomic {
        reconnects < RECONNECT -> reconnects++;
        authorize(); row.here = 1; row.ends = last_at; row.connected = last_auth; forged = 0;
        no_lease(); state.text = IDENTITY; state.saves++; state.family = row.rt; state.refused = NEVER; state.lapsed = 0;
        name_app(APP_OF(last_auth));
        take_leases()
    }
#endif
#if FILL_APP
    /* A refusal by others would now count for this app, so it ends. */
    :: atomic {
        fills < FILL_APP && row.here && state.text == IDENTITY && state.app == UNKNOWN -> fills++;
        state.app = RIGHT_APP; state.told = 1;
#ifndef WITHOUT_FILL_CLEARS
        if
        :: !(state.refused_by & RIGHT_APP) -> state.refused = NEVER
        :: else
        fi;
#endif
        state.refused_by = 0
    }
#endif
#if REVOKE
    :: atomic { revokes < REVOKE && row.here -> revokes++; revoked[AUTH(row.rt)] = 1 }
#endif
#if CLOCK_BACK
    :: atomic {
        backs < CLOCK_BACK && state.left > 0 -> backs++;
        if
        :: state.left++
        :: state.left = state.left + 3 * LEASE
        fi;
        if
        :: !STANDS(state.left) -> take_leases()
        :: else
        fi
    }
#endif
#if CLOCK_FORWARD
    :: atomic { forwards < CLOCK_FORWARD && state.left > 0 -> forwards++; state.left = 0; take_leases() }
#endif
    :: false
    od
}

init {
    atomic {
        /* Connected by the library. */
        last_auth = 1; last_rt = 1; last_at = 1; auth_of[1] = 1; current[1] = 1;
        row.here = 1; row.rt = TEXT(1); row.at = TEXT(1); row.ends = 1; row.connected = 1;
        state.text = IDENTITY; state.holder = NOBODY; state.saves = 1; state.family = row.rt;
        old_state.holder = NOBODY;
#ifdef APPS
        app_of[1] = APP_A;
#endif
#ifndef UNKNOWN_APP
        name_app(APP_A);
#endif
        j = 0;
        do
        :: j < N -> alive[j] = 1; run process(j); run request(j); j++
        :: else -> break
        od;
        run time();
        run others()
    }
}
