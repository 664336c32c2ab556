// The rules of SMAX for the CPU, one thread: what battle.py does with tensors, with the same arithmetic in the same order.
//
// kernel.py defines MAP_SIZE, SUB_STEPS, SUB_STEP_S, COOLDOWN_LOW, COOLDOWN_WIDTH, MOVE_LENGTH, STOP and TYPES, so that the
// numbers of the rules stand in maps.py alone. Contraction of a * b + c must be off: torch rounds twice.
//
// Notation: N copies, n allies, E enemies, U = n + E units, allies first; enemies number the allies from the last to the first.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t FIRST_ATTACK = STOP + 1, OWN = 4 + TYPES, OTHER = 7 + TYPES;
constexpr float SIZE = MAP_SIZE, DT = SUB_STEP_S, LENGTH = MOVE_LENGTH;
constexpr float MOVE_X[STOP + 1] = {0, LENGTH, 0, -LENGTH, 0}, MOVE_Y[STOP + 1] = {LENGTH, 0, -LENGTH, 0, 0};

enum { SPEED, ATTACK, REACH, SIGHT, RADIUS, HEALTH, COOLDOWN, ATTRIBUTES };  // columns of the table of types

// All copies, as battle.py holds them.
struct Arrays {
    const int64_t *types;            // [N, U]
    float *positions;                // [N, U, 2]
    float *health, *cooldowns;       // [N, U]
    int64_t *actions, *targets;      // [N, U], [N, E]
    const float *homes;              // [N, E, 2]
    uint8_t *playing;                // [N]
    float *obs, *state;              // results: [N, n, (U - 1) * OTHER + OWN], [N, U * (OWN + 2)]
    uint8_t *available;              // result: [N, n, FIRST_ATTACK + E]
    const int64_t *ally_actions;     // [N, n]
    const float *follow, *draws;     // [N, E], [N, U]
    float *reward;                   // result: [N]
};

inline float length(float x, float y) { return std::sqrt(x * x + y * y); }
inline float clamp(float x, float low, float high) { return std::min(std::max(x, low), high); }

// One copy at a time, its units in arrays of their own.
class Battle {
  public:
    Battle(const int64_t *sizes, const float *table, const Arrays &arrays)
        : n(sizes[1]), E(sizes[2]), U(n + E), table(table), all(arrays), floats(FLOATS * U), doubles(2 * U),
          integers(2 * U) {
        for (int k = 0; k < FLOATS; k++) f[k] = floats.data() + k * U;
        push_x = doubles.data(), push_y = push_x + U;
        attacked = integers.data(), living = attacked + U;
    }

    void step(int64_t copy) {
        load(copy);
        choose_enemy_actions(copy);
        std::copy_n(all.ally_actions + copy * n, n, actions);
        for (int64_t i = 0; i < U; i++) f[BEFORE][i] = health[i];
        advance(copy);
        double lost = 0;
        bool allies_live = false, enemies_live = false;
        for (int64_t i = 0; i < n; i++) allies_live |= health[i] > 0;
        for (int64_t i = n; i < U; i++) {
            enemies_live |= health[i] > 0;
            lost += (health[i] - f[BEFORE][i]) / f[HEALTH][i];
        }
        const float won = allies_live && !enemies_live ? 1.0f : 0.0f;
        all.reward[copy] = std::fabs(static_cast<float>(lost)) / static_cast<float>(E) + won;
        all.playing[copy] = allies_live && enemies_live;
        observe(copy);
    }

    void observe_start(int64_t copy) {
        load(copy);
        observe(copy);
    }

    // The observation of a copy whose episode has ended.
    void hide(int64_t copy) {
        clear(copy);
        for (int64_t i = 0; i < n; i++) all.available[(copy * n + i) * (FIRST_ATTACK + E) + STOP] = 1;
    }

  private:
    enum { X = ATTRIBUTES, Y, SHIFT_X, SHIFT_Y, RELOADED, DAMAGE, BEFORE, FLOATS };

    const int64_t n, E, U;
    const float *table;
    const Arrays &all;
    std::vector<float> floats;
    std::vector<double> doubles;
    std::vector<int64_t> integers;
    float *f[FLOATS];  // [U] each
    double *push_x, *push_y;
    int64_t *attacked, *living;
    float *health, *cooldowns;
    int64_t *actions;

    void load(int64_t copy) {
        const int64_t *types = all.types + copy * U;
        const float *positions = all.positions + copy * U * 2;
        for (int64_t i = 0; i < U; i++) {
            for (int k = 0; k < ATTRIBUTES; k++) f[k][i] = table[types[i] * ATTRIBUTES + k];
            f[X][i] = positions[2 * i], f[Y][i] = positions[2 * i + 1];
        }
        health = all.health + copy * U;
        cooldowns = all.cooldowns + copy * U;
        actions = all.actions + copy * U;
    }

    void choose_enemy_actions(int64_t copy) {
        const float *x = f[X], *y = f[Y];
        for (int64_t e = 0; e < E; e++) {
            const int64_t i = n + e;
            int64_t &target = all.targets[copy * E + e];
            const int64_t kept = target;
            float closest = INFINITY;
            bool stays = false;
            int64_t seen = 0;
            target = -1;
            if (health[i] > 0) {
                for (int64_t k = 0; k < n; k++) {
                    const int64_t j = n - 1 - k;
                    float dx = x[j] - x[i], dy = y[j] - y[i];
                    if (!(health[j] > 0) || !(length(dx, dy) < f[SIGHT][i])) continue;
                    living[seen++] = j;
                    dx = dx / f[SIGHT][i] * f[SIGHT][i], dy = dy / f[SIGHT][i] * f[SIGHT][i];
                    const float distance = length(dx, dy);
                    if (!(distance < f[REACH][i])) continue;
                    stays |= k == kept;
                    if (distance < closest) closest = distance, target = k;
                }
            }
            if (stays) target = kept;
            if (target >= 0) {
                actions[i] = FIRST_ATTACK + target;
                continue;
            }
            float goal_x = all.homes[2 * (copy * E + e)], goal_y = all.homes[2 * (copy * E + e) + 1];
            if (seen > 0) {
                const float draw = all.follow[copy * E + e] * static_cast<float>(seen);
                const int64_t j = living[std::min(static_cast<int64_t>(draw), seen - 1)];
                goal_x = x[i] + (x[j] - x[i]) / f[SIGHT][i] * f[SIGHT][i];
                goal_y = y[i] + (y[j] - y[i]) / f[SIGHT][i] * f[SIGHT][i];
            }
            const float along[] = {goal_y - y[i], goal_x - x[i], -(goal_y - y[i]), -(goal_x - x[i])};
            actions[i] = std::max_element(along, along + 4) - along;
        }
    }

    void advance(int64_t copy) {
        float *x = f[X], *y = f[Y], *damage = f[DAMAGE];
        for (int64_t i = 0; i < U; i++) {
            const int64_t move = std::min<int64_t>(actions[i], STOP), k = actions[i] - FIRST_ATTACK;
            attacked[i] = k < 0 ? -1 : i < n ? n + k : n - 1 - k;
            f[SHIFT_X][i] = MOVE_X[move] * f[SPEED][i] * DT;
            f[SHIFT_Y][i] = MOVE_Y[move] * f[SPEED][i] * DT;
            f[RELOADED][i] =
                f[COOLDOWN][i] + (all.draws[copy * U + i] * static_cast<float>(COOLDOWN_WIDTH) + static_cast<float>(COOLDOWN_LOW));
        }
        for (int sub_step = 0; sub_step < SUB_STEPS; sub_step++) {
            std::fill_n(damage, U, 0.0f);
            for (int64_t i = 0; i < U; i++) {
                const int64_t j = attacked[i];
                const bool shoots = j >= 0 && cooldowns[i] <= 0 && health[i] > 0 && health[j] > 0 &&
                                    length(x[i] - x[j], y[i] - y[j]) < f[REACH][i];
                if (shoots) damage[j] += f[ATTACK][i];
                cooldowns[i] += shoots ? f[RELOADED][i] - cooldowns[i] : -DT;
            }
            int64_t count = 0;
            for (int64_t i = 0; i < U; i++) {
                if (health[i] > 0) {
                    x[i] = clamp(x[i] + f[SHIFT_X][i], 0, SIZE);
                    y[i] = clamp(y[i] + f[SHIFT_Y][i], 0, SIZE);
                }
                const bool on_border = x[i] <= 0 || y[i] <= 0 || x[i] >= SIZE || y[i] >= SIZE;
                health[i] = on_border ? 0 : std::max(health[i] - damage[i], 0.0f);
                if (health[i] > 0) living[count++] = i;
            }
            push_apart(count);
        }
        float *positions = all.positions + copy * U * 2;
        for (int64_t i = 0; i < U; i++) positions[2 * i] = x[i], positions[2 * i + 1] = y[i];
    }

    // Move each two of the `count` living units that overlap apart by half of the overlap each.
    void push_apart(int64_t count) {
        float *x = f[X], *y = f[Y];
        std::fill_n(push_x, 2 * U, 0.0);
        for (int64_t a = 0; a < count; a++) {
            const int64_t i = living[a];
            for (int64_t b = a + 1; b < count; b++) {
                const int64_t j = living[b];
                const float dx = x[i] - x[j], dy = y[i] - y[j], radius = f[RADIUS][i] + f[RADIUS][j];
                if (dx * dx + dy * dy > radius * radius * 1.0001f) continue;  // most pairs, without a root and a division
                const float overlap = radius / (length(dx, dy) + 1e-6f) - 1;
                if (!(overlap > 0)) continue;
                const float px = dx * overlap, py = dy * overlap;
                push_x[i] += px, push_y[i] += py, push_x[j] -= px, push_y[j] -= py;
            }
        }
        for (int64_t a = 0; a < count; a++) {
            const int64_t i = living[a];
            x[i] += static_cast<float>(push_x[i]) / 2, y[i] += static_cast<float>(push_y[i]) / 2;
        }
    }

    void clear(int64_t copy) {
        const int64_t width = (U - 1) * OTHER + OWN, n_actions = FIRST_ATTACK + E;
        std::memset(all.obs + copy * n * width, 0, n * width * sizeof(float));
        std::memset(all.state + copy * U * (OWN + 2), 0, U * (OWN + 2) * sizeof(float));
        std::memset(all.available + copy * n * n_actions, 0, n * n_actions);
    }

    void write_own(float *out, int64_t i, int64_t type) {
        out[0] = health[i] / f[HEALTH][i];
        out[1] = f[X][i] / SIZE, out[2] = f[Y][i] / SIZE;
        out[3] = clamp(cooldowns[i] / f[COOLDOWN][i], 0, 1);
        out[4 + type] = 1;
    }

    void observe(int64_t copy) {
        clear(copy);
        const int64_t width = (U - 1) * OTHER + OWN, n_actions = FIRST_ATTACK + E;
        const int64_t *types = all.types + copy * U;
        const float *x = f[X], *y = f[Y];
        float *state = all.state + copy * U * (OWN + 2);
        for (int64_t i = 0; i < U; i++) {
            if (health[i] > 0) write_own(state + i * OWN, i, types[i]);
            state[U * OWN + i] = i >= n;
            state[U * (OWN + 1) + i] = static_cast<float>(types[i]);
        }
        for (int64_t i = 0; i < n; i++) {
            uint8_t *mask = all.available + (copy * n + i) * n_actions;
            mask[STOP] = 1;
            if (!(health[i] > 0)) continue;
            std::memset(mask, 1, STOP);
            float *out = all.obs + (copy * n + i) * width;
            for (int64_t j = 0; j < U; j++) {
                if (j == i) continue;
                const float dx = x[j] - x[i], dy = y[j] - y[i], distance = length(dx, dy);
                if (health[j] > 0) {
                    if (j >= n) mask[FIRST_ATTACK + j - n] = distance < f[REACH][i];
                    if (distance < f[SIGHT][i]) write_other(out, i, j, types[j], dx, dy);
                }
                out += OTHER;
            }
            std::copy_n(state + i * OWN, OWN, out);
        }
    }

    void write_other(float *out, int64_t i, int64_t j, int64_t type, float dx, float dy) {
        const int64_t move = std::min<int64_t>(actions[j], STOP);
        out[0] = health[j] / f[HEALTH][j];
        out[1] = dx / f[SIGHT][i], out[2] = dy / f[SIGHT][i];
        out[3] = MOVE_X[move], out[4] = MOVE_Y[move];
        const float last_action = static_cast<float>(STOP + (j < n ? E : n));
        out[5] = actions[j] >= FIRST_ATTACK ? static_cast<float>(actions[j]) / last_action : 0;
        out[6] = clamp(cooldowns[j] / f[COOLDOWN][j], 0, 1);
        out[7 + type] = 1;
    }
};

}  // namespace

// Both take sizes [N, n, E], the table of types [TYPES, ATTRIBUTES] and the arrays in the order of `Arrays`. Copies that are not
// playing stay as they are, get the reward 0 and show zeros. The result is not 0, and nothing happens, if an action is out of range.
extern "C" int smax_step(const int64_t *sizes, const float *table, const Arrays *arrays) {
    for (int64_t k = 0; k < sizes[0] * sizes[1]; k++) {
        if (arrays->ally_actions[k] < 0 || arrays->ally_actions[k] >= FIRST_ATTACK + sizes[2]) return 1;
    }
    Battle battle(sizes, table, *arrays);
    for (int64_t copy = 0; copy < sizes[0]; copy++) {
        if (arrays->playing[copy]) {
            battle.step(copy);
        } else {
            arrays->reward[copy] = 0;
            battle.hide(copy);
        }
    }
    return 0;
}

extern "C" int smax_observe(const int64_t *sizes, const float *table, const Arrays *arrays) {
    Battle battle(sizes, table, *arrays);
    for (int64_t copy = 0; copy < sizes[0]; copy++) battle.observe_start(copy);
    return 0;
}
